package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
)

// config is what of config.json is tested; see moby, api/types/plugin.
type config struct {
	Entrypoint []string
	Interface  struct {
		Types  []string
		Socket string
	}
	Network         struct{ Type string }
	PidHost         bool
	IpcHost         bool
	PropagatedMount string
	Linux           struct {
		Capabilities    []string
		AllowAllDevices bool
	}
	Mounts []struct {
		Name, Source, Destination, Type string
		Options, Settable               []string
	}
	Env []struct {
		Name, Description, Value string
		Settable                 []string
	}
}

func readConfig(t *testing.T) (c config) {
	t.Helper()
	text, err := os.ReadFile("../../config.json")
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigBearsTheSettings(t *testing.T) {
	env := readConfig(t).Env
	if len(env) != len(settings) {
		t.Errorf("config.json has %d settings, settings.go %d", len(env), len(settings))
	}
	for i, s := range settings {
		if i >= len(env) {
			t.Errorf("config.json lacks %s", s.name)
			continue
		}
		e := env[i]
		if e.Name != s.name || e.Value != s.value || e.Description != s.about {
			t.Errorf("setting %d\nconfig.json %s=%q %q\nsettings.go %s=%q %q", i, e.Name, e.Value, e.Description, s.name, s.value, s.about)
		}
		if !slices.Equal(e.Settable, []string{"value"}) {
			t.Errorf("docker plugin set cannot change %s: settable %q", e.Name, e.Settable)
		}
	}
}

// What the plugin cannot do without: each line has its reason in the design.
func TestConfigGivesThePluginWhatItNeeds(t *testing.T) {
	c := readConfig(t)
	for _, check := range []struct {
		what string
		ok   bool
	}{
		{"it starts this program", slices.Equal(c.Entrypoint, []string{"/usr/bin/docker-volume-rbd"})},
		{"it is a volume driver", slices.Equal(c.Interface.Types, []string{"docker.volumedriver/1.0"})},
		{"the socket is where the program listens", c.Interface.Socket == "rbd.sock"},
		{"mounts propagate from where the program makes them", c.PropagatedMount == "/var/lib/docker-volume-rbd"},
		{"host network: a kernel client dies with its network namespace", c.Network.Type == "host"},
		{"pidhost: to see whether mounts reach the host", c.PidHost},
		{"no more of the host's namespaces", !c.IpcHost},
		{"devices that appear later", c.Linux.AllowAllDevices},
		{"it may mount, load the module, grow ext4 while it is mounted, and read why the kernel refuses to map",
			slices.Equal(c.Linux.Capabilities, []string{"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RESOURCE", "CAP_SYSLOG"})},
	} {
		if !check.ok {
			t.Errorf("not so: %s", check.what)
		}
	}
	mounts := map[string]bool{} // destinations; true = writable
	for _, m := range c.Mounts {
		mounts[m.Destination] = !slices.Contains(m.Options, "ro")
		if m.Type != "bind" || !slices.Contains(m.Options, "rbind") {
			t.Errorf("mount %s: type %s, options %q", m.Name, m.Type, m.Options)
		}
		if settable := slices.Contains(m.Settable, "source"); settable != (m.Destination == "/etc/ceph") {
			t.Errorf("mount %s: settable %q", m.Name, m.Settable)
		}
	}
	// /sys is there without being asked for, but read-only; the modules are for modprobe.
	if want := map[string]bool{"/dev": true, "/sys": true, "/host/lib": false, "/etc/ceph": false}; !maps.Equal(mounts, want) {
		t.Errorf("mounts %v, want %v", mounts, want)
	}
}

// row is one of a table of the README: | `name` | `default` | text |, or with a
// column for the mapper before the text.
type row struct{ name, value, mapper, text string }

var rowPattern = regexp.MustCompile("^\\| `([^`|]+)` \\| *(?:`([^`|]+)`)? *\\| (?:([^ |][^|]*) \\| )?([^ |][^|]*) \\|$")

// readTable returns the rows of the README's table under a heading.
func readTable(t *testing.T, heading string) (rows []row) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut("\n"+string(text), "\n"+heading+"\n")
	if !found {
		t.Fatalf("README.md has no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		m := rowPattern.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("README.md, %s: not | `name` | `default` | text |: %s", heading, line)
			continue
		}
		rows = append(rows, row{m[1], m[2], m[3], m[4]})
	}
	return rows
}

func namesOf(rows []row) (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

func TestTheReadmeBearsTheSettings(t *testing.T) {
	rows := readTable(t, "## Settings")
	var want []string
	for _, s := range settings {
		want = append(want, s.name)
		for _, r := range rows {
			if r.name == s.name && r.value != s.value {
				t.Errorf("default of %s: README.md %q, settings.go %q", s.name, r.value, s.value)
			}
		}
	}
	if got := namesOf(rows); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("settings\nREADME.md   %q\nsettings.go %q", got, want)
	}
}

func TestTheReadmeBearsTheOptions(t *testing.T) {
	rows := readTable(t, "## Options")
	got := namesOf(rows)
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(volume.OptionNames))) {
		t.Errorf("options\nREADME.md %q\ndriver    %q", got, volume.OptionNames)
	}
	for _, r := range rows {
		if want, builtin := volume.BuiltinDefaults[r.name]; builtin && r.value != want {
			t.Errorf("default of %s: README.md %q, driver %q", r.name, r.value, want)
		}
		// What a mapper cannot do is refused when a volume is created, so there is no
		// option for one of them only; but there are kernels that are too old.
		if mapper, _, _ := strings.Cut(r.mapper, "; krbd "); mapper != "both" {
			t.Errorf("mapper of %s: %q", r.name, r.mapper)
		}
	}
}

func TestSettingsHaveDefaultsAndTheEnvironmentComesFirst(t *testing.T) {
	values := read(func(string) string { return "" })
	if len(values) != len(settings) {
		t.Errorf("%d values of %d settings: a name comes twice", len(values), len(settings))
	}
	for _, s := range settings {
		if values[s.name] != s.value {
			t.Errorf("%s is %q, want %q", s.name, values[s.name], s.value)
		}
	}
	env := map[string]string{"RBD_CONF_POOL": "ssd", "VOLUME_SIZE": "", "PATH": "/bin"}
	values = read(func(name string) string { return env[name] })
	if values["RBD_CONF_POOL"] != "ssd" || values["VOLUME_SIZE"] != "512" || values["PATH"] != "" {
		t.Errorf("got %v", values)
	}
}

func TestSettingsOfVolumesReachTheirOptions(t *testing.T) {
	names := map[string]bool{}
	for _, s := range settings {
		names[s.name] = true
	}
	for name, option := range optionDefaults {
		if !names[name] {
			t.Errorf("%s is no setting", name)
		}
		if !slices.Contains(volume.OptionNames, option) {
			t.Errorf("%s stands for %q, which is no option", name, option)
		}
		if got := defaults(map[string]string{name: "x"}); len(got) != 1 || got[option] != "x" {
			t.Errorf("%s=x becomes %v", name, got)
		}
	}
	for name := range names {
		if _, ok := optionDefaults[name]; strings.HasPrefix(name, "VOLUME_") && name != "VOLUME_TRASH" && !ok {
			t.Errorf("%s stands for no option", name)
		}
	}
	// The settings as they come are good, and say the same as the driver.
	d := defaults(read(func(string) string { return "" }))
	if err := volume.CheckDefaults(d); err != nil {
		t.Error(err)
	}
	for option, value := range d {
		if want := volume.BuiltinDefaults[option]; value != want {
			t.Errorf("default of %s: settings.go %q, driver %q", option, value, want)
		}
	}
}

func TestLogLevels(t *testing.T) {
	for value, want := range map[string]logrus.Level{
		"error": logrus.ErrorLevel, "warn": logrus.WarnLevel, "warning": logrus.WarnLevel, "info": logrus.InfoLevel, "debug": logrus.DebugLevel,
		"INFO": logrus.InfoLevel, "Debug": logrus.DebugLevel,
		"0": logrus.ErrorLevel, "1": logrus.WarnLevel, "2": logrus.InfoLevel, "3": logrus.DebugLevel, // wetopi's numbers
	} {
		if got, err := parseLevel(value); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", value, got, err, want)
		}
	}
	for _, value := range []string{"", "4", "-1", "1.5", "loud", "info ", "0x1"} {
		_, err := parseLevel(value)
		want := `setting LOG_LEVEL="` + value + `": allowed are error, warn, info, debug, or 0 to 3`
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", value, err, want)
		}
	}
	for _, s := range settings {
		if s.name == "LOG_LEVEL" {
			if level, err := parseLevel(s.value); err != nil || level != logrus.InfoLevel {
				t.Errorf("the default: %v, %v", level, err)
			}
		}
	}
}

func TestTheMapperIsChosenForAReason(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	krbdErr := krbd.Available(t.Context())
	keyErr := fmt.Errorf("%w of client.docker", krbd.ErrKey)
	for mapper, want := range map[string]string{"auto": "fuse (this kernel does not take the key of client.docker)", "fuse": "fuse (RBD_MAPPER)", "krbd": ""} {
		_, why, err := chooseMapper(log, map[string]string{"RBD_MAPPER": mapper}, keyErr, rbd.New(rbd.Config{}), t.TempDir())
		if why != want || (err == nil) != (want != "") || err != nil && err.Error() != "setting RBD_MAPPER=krbd: "+keyErr.Error() {
			t.Errorf("%s, and the key is refused: got %q, %v", mapper, why, err)
		}
	}
	for _, row := range []struct{ mapper, msMode, why, err string }{
		{"fuse", "", "fuse (RBD_MAPPER)", ""},
		{"auto", "secure", map[bool]string{true: "krbd (the kernel has rbd)", false: "fuse (the kernel has no rbd, and modprobe rbd: "}[krbdErr == nil], ""},
		{"nbd", "", "", `setting RBD_MAPPER="nbd": allowed are auto, krbd, fuse`},
		{"fuse", "fast", "", `setting RBD_MS_MODE="fast": allowed are legacy, crc, secure, prefer-crc, prefer-secure, or nothing`},
	} {
		_, why, err := chooseMapper(log, map[string]string{"RBD_MAPPER": row.mapper, "RBD_MS_MODE": row.msMode}, krbdErr, rbd.New(rbd.Config{}), t.TempDir())
		if row.err == "" && (err != nil || !strings.HasPrefix(why, row.why)) || row.err != "" && (err == nil || err.Error() != row.err) {
			t.Errorf("%+v: got %q, %v", row, why, err)
		}
	}
}

func TestTrash(t *testing.T) {
	for value, want := range map[string]time.Duration{"0": 0, "24h": 24 * time.Hour, "90m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "1s": time.Second} {
		if got, err := parseTrash(value); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", value, got, err, want)
		}
	}
	for _, value := range []string{"", "24", "-1h", "1ms", "d", "1.5d", "forever", "100000d", "99999d"} {
		_, err := parseTrash(value)
		want := `setting VOLUME_TRASH="` + value + `": allowed is a time such as 90m, 24h or 7d, or 0`
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", value, err, want)
		}
	}
}

func TestPlaces(t *testing.T) {
	home := backend.PoolSpec{Pool: "rbd", Namespace: "home"}
	for pools, want := range map[string][]backend.PoolSpec{
		"":                        {home},
		"ssd  ssd/x rbd/home ssd": {home, {Pool: "ssd"}, {Pool: "ssd", Namespace: "x"}},
		"rbd":                     {home, {Pool: "rbd"}},
	} {
		got, err := parsePlaces(map[string]string{"RBD_CONF_POOL": "rbd", "RBD_CONF_NAMESPACE": "home", "RBD_POOLS": pools})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", pools, got, err)
		}
	}
	for _, pools := range []string{"/x", "ssd/", "a/b/c", "a,b"} {
		if got, err := parsePlaces(map[string]string{"RBD_CONF_POOL": "rbd", "RBD_POOLS": pools}); err == nil || !strings.Contains(err.Error(), "is neither POOL nor POOL/NAMESPACE") {
			t.Errorf("%q: %v, %v", pools, got, err)
		}
	}
}
