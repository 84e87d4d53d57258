package rbd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// To ask a connection that was shut down is the end of the process.
func TestARetiredClientIsNotAskedForTheMonitors(t *testing.T) {
	p := rbd.New(testbed.Namespace(t))
	said, err := p.DiagnoseLate(t.Context())
	if err != nil || !strings.Contains(said, "no monitor answers (mon_host = ") {
		t.Errorf("got %q, %v", said, err)
	}
}

// configuration copies the cluster's into a directory of its own, without what it
// says of keyrings, and returns the key of the user of the tests.
func configuration(t *testing.T, add string) (cfg rbd.Config, key string) {
	t.Helper()
	cfg = testbed.Namespace(t)
	conf, err := os.ReadFile(cfg.ConfFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConfFile = filepath.Join(t.TempDir(), "ceph.conf")
	text := regexp.MustCompile(`(?m)^\s*keyring\s*=.*$`).ReplaceAllString(string(conf), "") + add
	if err := os.WriteFile(cfg.ConfFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg, strings.TrimSpace(testbed.Ceph(t, "auth", "get-key", cfg.User))
}

// What librados reads of a keyring, the kernel's client must get too, and nothing else.
func TestKeyringsAreReadAsLibradosReadsThem(t *testing.T) {
	cfg, key := configuration(t, "")
	const user = "client.tests"
	read := 0
	for name, text := range map[string]string{
		"as ceph writes it":               "[" + user + "]\n\tkey = KEY\n\tcaps mon = \"profile rbd\"\n",
		"a comment behind the section":    "[" + user + "] # host a\n\tkey = KEY\n",
		"another one":                     "[" + user + "] ; host a\nkey = KEY\n",
		"a comment behind the key":        "[" + user + "]\nkey = KEY ; note\n",
		"a comment right behind the key":  "[" + user + "]\nkey = KEY#note\n",
		"whole lines":                     "# [client.other]\n; key = x\n[" + user + "]\n  # key = x\nkey = KEY\n",
		"an indented section":             "  [" + user + "]\n key = KEY\n",
		"blanks at the ends":              "[" + user + "]  \t\nkey = KEY \t \n",
		"blanks in the section":           "[ " + user + " ]\nkey = KEY\n",
		"carriage returns":                "[" + user + "]\r\n\tkey = KEY\r\n",
		"in quotes":                       "[" + user + "]\nkey = \"KEY\"\n",
		"in other quotes":                 "[" + user + "]\nkey = 'KEY'\n",
		"no line feed at the end":         "[" + user + "]\nkey=KEY",
		"continued":                       "[" + user + "]\nkey = \\\nKEY\n",
		"another user before":             "[client.other] # host b\nkey = AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==\n[" + user + "]\nkey = KEY\n",
		"another user only":               "[client.other]\nkey = KEY\n",
		"a comment within caps":           "[" + user + "]\nkey = KEY\ncaps mon = \"allow r # not a comment\"\n",
		"a comment that looks like a key": "[" + user + "]\nkey = KEY # key = x\n",
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Keyring = filepath.Join(t.TempDir(), "keyring")
			if err := os.WriteFile(cfg.Keyring, []byte(strings.ReplaceAll(text, "KEY", key)), 0o600); err != nil {
				t.Fatal(err)
			}
			conn, librados := rbd.Connect(cfg, map[string]string{"client_mount_timeout": "10", "admin_socket": ""})
			if librados != nil { // it may read what we do not, not the other way round
				t.Logf("librados does not: %v", librados)
				return
			}
			conn.Shutdown()
			read++
			p := connect(t, cfg)
			if k, err := p.Kernel(t.Context()); err != nil || k.Key != key {
				t.Errorf("got %q, %v; want %q", k.Key, err, key)
			}
		})
	}
	if read < 10 {
		t.Errorf("librados reads %d of them only", read)
	}
}

// Where librados has the key from decides, not where it is as a rule.
func TestTheKeyIsThatOfTheConfiguration(t *testing.T) {
	_, key := configuration(t, "")
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, add := range []string{"\n[client]\nkey = " + key + "\n", "\n[client]\nkeyfile = " + file + "\n"} {
		cfg, _ := configuration(t, add)
		if k, err := connect(t, cfg).Kernel(t.Context()); err != nil || k.Key != key {
			t.Errorf("%s: got %q, %v", add, k.Key, err)
		}
	}
}

// With a configuration of its own (-conf) the keyring is beside it, as the message
// for one that is missing says.
func TestAKeyringBesideTheConfigurationIsFound(t *testing.T) {
	for _, name := range []string{"ceph.client.tests.keyring", "ceph.keyring", "keyring"} {
		t.Run(name, func(t *testing.T) {
			cfg, key := configuration(t, "")
			p := connect(t, cfg)
			if _, err := p.Names(t.Context()); err == nil || !strings.Contains(err.Error(), "put its keyring beside "+cfg.ConfFile) {
				t.Fatalf("without one: %v", err)
			}
			text := fmt.Sprintf("[client.tests]\n\tkey = %s\n", key)
			if err := os.WriteFile(filepath.Join(filepath.Dir(cfg.ConfFile), name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Names(t.Context()); err != nil {
				t.Errorf("with one: %v", err)
			}
			if k, err := p.Kernel(t.Context()); err != nil || k.Key != key {
				t.Errorf("for the kernel: %q, %v", k.Key, err)
			}
		})
	}
	t.Run("one that is configured wins", func(t *testing.T) {
		whole := testbed.Namespace(t)
		cfg, _ := configuration(t, "")
		conf, err := os.ReadFile(whole.ConfFile)
		if err == nil {
			err = os.WriteFile(cfg.ConfFile, conf, 0o600)
		}
		if err = errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(cfg.ConfFile), "keyring"), []byte("[client.tests]\nkey = nonsense\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := connect(t, cfg).Names(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Metadata that is too large to be read is that volume's trouble, and nobody has lost a guard.
func TestTooMuchMetadataIsNamed(t *testing.T) {
	p := connect(t, testbed.Namespace(t))
	image := backendtest.Create(t, p, "a", 8<<20)
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(t.Context()) }()
	for i := range 80 {
		if err := h.SetMeta(t.Context(), map[string]string{fmt.Sprint("k", i): strings.Repeat("x", 4000)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = h.Meta(t.Context())
	if err == nil || errors.Is(err, backend.ErrConflict) || !strings.Contains(err.Error(), "rbd image-meta list") {
		t.Errorf("got %v", err)
	}
}
