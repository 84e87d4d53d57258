package rbd_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// aes256k is a key as ceph 20.2.4 makes it: type, time, length, secret.
var aes256k = base64.StdEncoding.EncodeToString(append([]byte{2, 0, 0x5c, 0x7d, 0x0b, 0x6b, 1, 2, 3, 4, 32, 0}, bytes.Repeat([]byte{7}, 32)...))

func TestTheTypeOfAKey(t *testing.T) {
	for key, want := range map[string]string{
		aes256k: rbd.KeyAES256K,
		"AQAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==": rbd.KeyAES,
		"CQAAAAAA": "number 9",
	} {
		if got, err := rbd.KeyType(key); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", key, got, err, want)
		}
	}
	for _, key := range []string{"", "AQ==", "nonsense!"} {
		if got, err := rbd.KeyType(key); err == nil || got != "" {
			t.Errorf("%q: %q", key, got)
		}
	}
}

// keyring puts a new keyring in place.
func keyring(t *testing.T, path, user, key string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte("["+user+"]\n\tkey = "+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// withCaps is a file from which Ceph takes a user's new key.
func withCaps(t *testing.T, user, key string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "import")
	keyring(t, path, user, key+"\n\tcaps mon = \"profile rbd\"\n\tcaps osd = \"profile rbd\"\n\tcaps mgr = \"profile rbd\"")
	return path
}

// A librados that is too old for a key, or that can make nothing of it, says EIO.
func TestAKeyThatLibradosDoesNotKnowIsNamed(t *testing.T) {
	cfg := testbed.Namespace(t)
	for key, says := range map[string]string{
		aes256k:                "ceph auth rotate client.tests --key-type aes", // or, with a newer one, that it is not accepted
		"nonsense!":            "it is not base64 of a key; put what ceph auth get client.tests prints beside ",
		"AQAAAAAAAAAAEAAAAAAA": "see " + cfg.ConfFile,
	} {
		cfg.Keyring = filepath.Join(t.TempDir(), "keyring")
		keyring(t, cfg.Keyring, "client.tests", key)
		_, err := connect(t, cfg).Names(t.Context())
		if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), says) && !strings.Contains(err.Error(), "does not accept the key") {
			t.Errorf("%s: %v", key, err)
		} else {
			t.Logf("%v", err)
		}
	}
}

// A key that is rotated while the plugin runs is taken up when its keyring is there, and
// one that is not accepted harms nobody.
func TestARotatedKeyIsTakenUp(t *testing.T) {
	rotated := func() string { return strings.TrimSpace(testbed.Run(t, "ceph-authtool", "--gen-print-key")) }
	cfg := testbed.Namespace(t)
	cfg.User = "client.rotated"
	cfg.Keyring = filepath.Join(t.TempDir(), "keyring")
	testbed.Ceph(t, "auth", "get-or-create", cfg.User, "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
	defer testbed.Ceph(t, "auth", "rm", cfg.User)
	keyring(t, cfg.Keyring, cfg.User, strings.TrimSpace(testbed.Ceph(t, "auth", "get-key", cfg.User)))
	log, hook := logtest.NewNullLogger()
	cfg.Log = log
	said := func() (text string) {
		for _, e := range hook.AllEntries() {
			text += e.Message + "\n"
		}
		return text
	}
	p := rbd.New(cfg)
	t.Cleanup(p.Close)
	image := backendtest.Create(t, p, "a", 8<<20)
	client := func() string {
		t.Helper()
		h, err := p.Open(t.Context(), image.Name, backend.ReadOnly)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = h.Close(t.Context()) }()
		return h.ClientAddr()
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s; the log says: %s", what, said())
			}
		}
	}
	first := client()

	key := rotated()
	keyring(t, cfg.Keyring, cfg.User, key) // before the cluster has it
	wait("the new key is not tried", func() bool { return client() != first || strings.Contains(said(), "does not accept the key") })
	if now := client(); now != first {
		t.Fatalf("it is client %s now, was %s, with a key that is not accepted", now, first)
	}

	key = rotated()
	testbed.Ceph(t, "auth", "import", "-i", withCaps(t, cfg.User, key))
	keyring(t, cfg.Keyring, cfg.User, key)
	p.LookAtKey()
	wait("the new key is not taken up", func() bool { return client() != first })
	if k, err := p.Kernel(t.Context()); err != nil || k.Key != key {
		t.Errorf("for the kernel: %q, %v", k.Key, err)
	}
}

// Librados never asks a monitor again that has once refused its key: so it is with a key
// that was rotated, and a monitor that was restarted then. Nobody has to start the plugin anew.
func TestAClientThatWasRefusedIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	script := filepath.Join("..", "test", "cluster.sh")
	testbed.Run(t, script, "start", dir)
	t.Cleanup(func() { testbed.Run(t, script, "stop", dir) })
	ceph := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(testbed.Run(t, "ceph", append([]string{"-c", filepath.Join(dir, "ceph.conf")}, args...)...))
	}
	rotate := func(key string) {
		t.Helper()
		ceph("auth", "import", "-i", withCaps(t, "client.docker", key))
		pid := filepath.Join(dir, "mon.a.pid")
		testbed.Run(t, "sh", "-c", fmt.Sprintf("pid=$(cat %s); kill $pid; while test -e /proc/$pid; do sleep 0.1; done; ceph-mon -c %s/ceph.conf -i a", pid, dir))
	}
	key := ceph("auth", "get-key", "client.docker")
	defer rbd.MonTimeout("3")()
	cfg := rbd.Config{Cluster: "ceph", ConfFile: filepath.Join(dir, "ceph.conf"), User: "client.docker", Pool: "rbd", Log: testbed.Log(t)}
	cfg.Keyring = filepath.Join(t.TempDir(), "keyring")
	keyring(t, cfg.Keyring, cfg.User, key)
	p := connect(t, cfg)
	until := func(done func(error) bool) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
			_, err := p.Kernel(t.Context())
			if done(err) {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	works := func(err error) bool { return err == nil }
	until(works)
	rotate(strings.TrimSpace(testbed.Run(t, "ceph-authtool", "--gen-print-key")))
	until(func(err error) bool { return err != nil && strings.Contains(err.Error(), "does not accept the key") })
	rotate(key) // the old one again: the keyring stays what it was
	until(works)
}

// Nobody would end the connection of a pool that is closed, as that of a roll-back is.
func TestAClosedPoolIsNotConnectedAnew(t *testing.T) {
	if connected, err := rbd.New(testbed.Namespace(t)).RenewLate(t.Context()); connected || err != nil {
		t.Errorf("connected: %v, %v", connected, err)
	}
}
