package testbed

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Run runs a program and returns what it says; the test ends if it fails.
func Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended when it cleans up
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %v: %v: %s%s", name, args, err, errs.Bytes(), out)
	}
	return string(out)
}

// RBD runs Ceph's rbd.
func RBD(tb testing.TB, args ...string) string {
	tb.Helper()
	return Run(tb, "rbd", append([]string{"-c", Conf()}, args...)...)
}

// Ceph runs Ceph's ceph.
func Ceph(tb testing.TB, args ...string) string {
	tb.Helper()
	return Run(tb, "ceph", append([]string{"-c", Conf()}, args...)...)
}

// Operations counts what clients have had the OSDs do since they were started.
func Operations(tb testing.TB) (n int) {
	tb.Helper()
	for id := range strings.FieldsSeq(Ceph(tb, "osd", "ls")) {
		var counters struct{ OSD struct{ Op int } }
		if err := json.Unmarshal([]byte(Ceph(tb, "tell", "osd."+id, "perf", "dump", "osd")), &counters); err != nil {
			tb.Fatal(err)
		}
		n += counters.OSD.Op
	}
	return n
}

// BlocklistedUntil tells until when an address is on the blocklist.
func BlocklistedUntil(tb testing.TB, addr string) time.Time {
	tb.Helper()
	dec := json.NewDecoder(bytes.NewReader([]byte(Ceph(tb, "osd", "blocklist", "ls", "-f", "json"))))
	for {
		var list []struct{ Addr, Until string }
		if err := dec.Decode(&list); err == io.EOF {
			tb.Fatalf("%s is not on the blocklist", addr)
		} else if err != nil {
			tb.Fatal(err)
		}
		for _, e := range list {
			if e.Addr == addr {
				until, err := time.Parse("2006-01-02T15:04:05.000000-0700", e.Until)
				if err != nil {
					tb.Fatal(err)
				}
				return until
			}
		}
	}
}

// Loops lists the loop devices on files below a directory.
func Loops(tb testing.TB, dir string) (devices []string) {
	tb.Helper()
	for line := range strings.Lines(Run(tb, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			devices = append(devices, fields[0])
		}
	}
	return devices
}

// KillServer ends an image server of the userspace mapper as a crash does.
func KillServer(tb testing.TB, dir, imageID string) {
	tb.Helper()
	pid := server(tb, dir, imageID)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		tb.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("image server %d does not end", pid)
		}
	}
}

// StopServer stops an image server without ending it, until resume is called.
func StopServer(tb testing.TB, dir, imageID string) (resume func()) {
	tb.Helper()
	pid := server(tb, dir, imageID)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		tb.Fatal(err)
	}
	return func() { _ = unix.Kill(pid, unix.SIGCONT) }
}

func server(tb testing.TB, dir, imageID string) int {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(dir, imageID+".lock"))
	if err != nil {
		tb.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		tb.Fatal(err)
	}
	return pid
}

// NothingLeft fails a test that leaves files, mounts or loop devices in its
// directories. What is on its way out gets a moment.
func NothingLeft(tb testing.TB, dirs ...string) {
	tb.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for _, dir := range dirs {
			left = append(left, Loops(tb, dir)...)
			files, err := os.ReadDir(dir)
			if err != nil && !os.IsNotExist(err) {
				tb.Fatal(err)
			}
			for _, f := range files {
				left = append(left, f.Name())
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			tb.Errorf("left behind in %v: %v", dirs, left)
			return
		}
	}
}

// WatchTimeout shortens, for one test, how long Ceph waits for a sign of life of
// a watcher; its default is 30 s. Clients give one every 5 s.
func WatchTimeout(tb testing.TB, seconds int) {
	tb.Helper()
	Ceph(tb, "config", "set", "osd", "osd_client_watch_timeout", strconv.Itoa(seconds))
	tb.Cleanup(func() { Ceph(tb, "config", "rm", "osd", "osd_client_watch_timeout") })
}

// Passphrase puts one into the cluster's config-key store, for one test.
func Passphrase(tb testing.TB, name, passphrase string) {
	tb.Helper()
	Ceph(tb, "config-key", "set", "docker_volume/"+name, passphrase)
	tb.Cleanup(func() { Ceph(tb, "config-key", "rm", "docker_volume/"+name) })
}

// Pool makes a pool for one test.
func Pool(tb testing.TB) (name string) {
	tb.Helper()
	name = "p" + strings.ToLower(rand.Text()[:8])
	Ceph(tb, "osd", "pool", "create", name, "4")
	RBD(tb, "pool", "init", name)
	tb.Cleanup(func() { Ceph(tb, "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it") })
	return name
}

// User makes a Ceph user with these caps and returns its keyring.
func User(tb testing.TB, name string, caps ...string) (keyring string) {
	tb.Helper()
	keyring = filepath.Join(tb.TempDir(), "keyring")
	Ceph(tb, append([]string{"auth", "get-or-create", name, "-o", keyring}, caps...)...)
	return keyring
}

// Capable tells whether this process has a capability: in a container root has not all.
func Capable(tb testing.TB, capability uint) bool {
	tb.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		tb.Fatal(err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
