package smoke

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

var by = flag.String("by", "program", "who asks the plugin: program (this test), docker or podman")

// Qemu's emulation of a single program has not all calls: what mkfs.xfs and mkfs.btrfs ask a
// device for, what freezes a filesystem.
var emulated = flag.Bool("emulated", false, "without xfs, btrfs and growth, and with snapshots of what is not mounted")

// settings are the plugin's. What is removed is gone, or what is left could not be
// counted.
var settings = []string{"LOG_LEVEL=debug", "RBD_MAPPER=fuse", "VOLUME_TRASH=0"}

// limit bounds a command; none takes a tenth of it unless something hangs.
const limit = 90 * time.Second

// bed is a cluster with two nodes.
type bed struct {
	*testing.T
	cluster  string
	one, two node
}

func newBed(t *testing.T) bed {
	t.Helper()
	plugin := os.Getenv("TEST_PLUGIN")
	if plugin == "" {
		t.Fatal("TEST_PLUGIN is not set: it is the directory of a plugin, as cmd/plugin.sh makes it")
	}
	if os.Getenv("IN_SUITE") == "" {
		t.Fatal("this must not run on the machine itself, whose /dev and /lib it mounts below its own directory: run it by test/suite.sh")
	}
	dir, err := os.MkdirTemp("", "rbd") // short enough for the names of sockets
	if err != nil {
		t.Fatal(err)
	}
	b := bed{T: t, cluster: filepath.Join(dir, "c")}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil { // each part has removed its own
			t.Error(err)
		}
	})
	script := func(name string, args ...string) {
		t.Helper()
		if _, err := tool.Run(2*limit, filepath.Join("..", name), args...); err != nil {
			t.Fatal(err)
		}
	}
	script("cluster.sh", "start", b.cluster)
	t.Cleanup(func() { script("cluster.sh", "stop", b.cluster) })
	b.tool("ceph", "config", "set", "osd", "osd_client_watch_timeout", "10")
	ceph := filepath.Join(b.cluster, "etc-ceph")
	start := map[string]func(dir string) (node, error){
		"program": func(dir string) (node, error) { return startProgram(dir, "one", plugin, ceph) },
		"docker":  func(dir string) (node, error) { return startDocker(dir, plugin, ceph) },
		"podman":  func(dir string) (node, error) { return startPodman(dir, plugin, ceph) },
	}[*by]
	if start == nil {
		t.Fatalf("-by %s: it is program, docker or podman", *by)
	}
	stops := func(n node, err error) node {
		t.Helper()
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(n.log())
			}
			if err := n.stop(); err != nil {
				t.Error(err)
			}
		})
		b.must(err)
		return n
	}
	b.one = stops(start(filepath.Join(dir, "one")))
	two, err := startProgram(filepath.Join(dir, "two"), "two", plugin, ceph)
	b.two = stops(two, err)
	t.Logf("==> cell: client %s, cluster %s, keys of type %d, asked by %s", b.client(plugin), strings.Fields(b.tool("ceph", "version"))[2], b.keyType(), *by)
	return b
}

// client is the release of librbd in a root filesystem.
func (b bed) client(plugin string) string {
	b.Helper()
	stanza, err := os.ReadFile(filepath.Join(plugin, "rootfs/var/lib/dpkg/status.d/librbd1"))
	b.must(err)
	_, version, _ := strings.Cut(string(stanza), "\nVersion: ")
	version, _, _ = strings.Cut(version, "+")
	return version
}

// keyType is that of the plugin's user: 1 is aes, 2 aes256k.
func (b bed) keyType() int {
	b.Helper()
	key, err := base64.StdEncoding.DecodeString(b.tool("ceph", "auth", "print-key", "client.docker"))
	b.must(err)
	return int(key[0])
}

// tool runs one of Ceph's tools.
func (b bed) tool(name string, args ...string) string {
	b.Helper()
	out, err := tool.Run(limit, name, append([]string{"-c", filepath.Join(b.cluster, "ceph.conf")}, args...)...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func (b bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// says has a container of its own on the first node run a script in a volume.
func (b bed) says(volume, script, want string) {
	b.Helper()
	out, err := b.one.once(volume, script)
	if err != nil || out != want {
		b.Fatalf("%s: %q, %v; want %q", volume, out, err, want)
	}
}

// What users do with volumes.
func TestSmoke(t *testing.T) {
	b := newBed(t)
	written(b)
	copied(b)
	if !*emulated {
		grown(b)
	}
	encrypted(b)
	takenOver(b)
	nothingLeft(b)
}

// written: each filesystem is made, and holds what is written.
func written(b bed) {
	b.Helper()
	for volume, options := range map[string][]string{
		"db": {"size=64M"}, "x": {"size=512M", "fstype=xfs"}, "b": {"size=256M", "fstype=btrfs"},
	} {
		if *emulated && volume != "db" {
			continue
		}
		b.must(b.one.create(volume, options...))
		b.says(volume, "echo monday >file; sync file; cat file", "monday")
		b.says(volume, "cat file", "monday")
	}
	if !*emulated {
		b.must(b.one.remove("b"))
	}
}

// copied: a snapshot of a volume in use, and a copy of it.
func copied(b bed) {
	b.Helper()
	var made struct{ Frozen bool }
	snapshot := func() {
		b.Helper()
		b.must(ask(b.one.socket(), "Snapshot.Create", map[string]any{"volume": "db", "snapshot": "monday"}, &made))
	}
	if *emulated {
		snapshot()
	}
	u, err := b.one.hold("db")
	b.must(err)
	if !*emulated {
		snapshot()
	}
	if made.Frozen == *emulated {
		b.Errorf("a snapshot of a volume that is mounted: frozen: %v", made.Frozen)
	}
	_, err = u.run("echo tuesday >file; sync file")
	b.must(err)
	b.must(b.one.create("then", "from=db@monday"))
	b.says("then", "cat file", "monday")
	out, err := u.run("cat file")
	if err != nil || out != "tuesday" {
		b.Errorf("the original: %q, %v", out, err)
	}
	b.must(u.end())
	b.must(b.one.remove("then"))
	b.must(ask(b.one.socket(), "Snapshot.Remove", map[string]any{"volume": "db", "snapshot": "monday"}, nil))
}

// grown: an image that an admin has made larger, under a container. It is xfs, as ext4
// wants CAP_SYS_RESOURCE for that, which root has not on every machine.
func grown(b bed) {
	b.Helper()
	u, err := b.one.hold("x")
	b.must(err)
	const blocks = "df -P -k . | tail -n 1 | awk '{ print $2 }'"
	before, err := u.run(blocks)
	b.must(err)
	b.tool("rbd", "resize", "--no-progress", "--size", "2G", "rbd/x")
	b.must(tool.Within(30*time.Second, func() error {
		after, err := u.run(blocks)
		if err != nil {
			return err
		}
		was, err1 := strconv.Atoi(before)
		is, err2 := strconv.Atoi(after)
		if err1 != nil || err2 != nil || is < 3*was {
			return fmt.Errorf("%s kB, and after the image has grown fourfold %s", before, after)
		}
		return nil
	}))
	b.must(u.end())
	b.says("x", "cat file", "monday")
	b.must(b.one.remove("x"))
}

// encrypted: nothing of what is written can be read from the pool.
func encrypted(b bed) {
	b.Helper()
	b.tool("ceph", "config-key", "set", "docker_volume/home", "correct-horse-battery")
	b.must(b.one.create("secret", "size=64M", "encryption=luks2", "passphrase=ceph:home"))
	b.says("secret", "echo the plain text >file; sync file; cat file", "the plain text")
	b.says("secret", "cat file", "the plain text")
	raw := filepath.Join(b.TempDir(), "raw")
	b.tool("rbd", "export", "--no-progress", "rbd/secret", raw)
	image, err := os.ReadFile(raw)
	b.must(err)
	if !strings.HasPrefix(string(image), "LUKS\xba\xbe\x00\x02") || strings.Contains(string(image), "the plain text") {
		b.Errorf("the image begins with %q", image[:8])
	}
	b.must(b.one.remove("secret"))
}

// takenOver: a node that does not answer any more loses its volume to another, and
// cannot write when it comes back.
func takenOver(b bed) {
	b.Helper()
	u, err := b.one.hold("db")
	b.must(err)
	_, err = u.run("echo wednesday >file; sync file")
	b.must(err)
	stopped, err := b.one.processes()
	b.must(err)
	resume := func() {
		for _, pid := range stopped {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
	}
	defer resume()
	for _, pid := range stopped {
		b.must(unix.Kill(pid, unix.SIGSTOP))
	}
	began := time.Now()
	if err := b.two.create("db"); err != nil { // as Docker does on a node that does not know it
		b.Fatal(err)
	}
	taker, err := b.two.hold("db")
	b.must(err)
	b.Logf("figure: taken over after %.1f s, where a watch lasts for 10 s", time.Since(began).Seconds())
	out, err := taker.run("cat file; echo thursday >file; sync file")
	if err != nil || out != "wednesday" {
		b.Fatalf("after the take-over: %q, %v", out, err)
	}
	if list := b.tool("ceph", "osd", "blocklist", "ls"); !strings.Contains(list, "127.0.0.1:0/") {
		b.Errorf("nobody is fenced: %s", list)
	}
	resume()
	if out, err := u.run("echo friday >file; sync file"); err == nil {
		b.Errorf("the node that was away writes: %s", out)
	}
	_ = u.end()
	b.must(taker.end())
	out, err = b.two.once("db", "cat file")
	if err != nil || out != "thursday" {
		b.Errorf("in the end: %q, %v", out, err)
	}
	// And it has the volume again when it asks for it.
	b.must(tool.Within(60*time.Second, func() error {
		out, err := b.one.once("db", "cat file")
		if err == nil && out != "thursday" {
			b.Fatalf("back on the first node: %q", out)
		}
		return err
	}))
}

// nothingLeft: no image, no object, no mount, no loop device.
func nothingLeft(b bed) {
	b.Helper()
	b.must(b.one.remove("db"))
	b.must(tool.Within(time.Minute, func() error {
		if list := b.tool("rbd", "ls"); list != "" {
			return fmt.Errorf("images: %s", list)
		}
		for object := range strings.FieldsSeq(b.tool("rados", "-p", "rbd", "ls")) {
			if object == "docker_volume.clock" { // one for each pool
				continue
			}
			if strings.HasPrefix(object, "docker_volume.") || strings.HasPrefix(object, "rbd_data.") {
				return fmt.Errorf("object %s", object)
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, filepath.Dir(b.cluster)) && (strings.Contains(line, "/volumes/") || strings.Contains(line, "fuse.docker-volume-rbd")) {
				return fmt.Errorf("mounted: %s", line)
			}
		}
		return nil
	}))
}
