package krbd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// larger waits until the filesystem of a mounted volume has so many MiB.
func (n *node) larger(volume string, least int, limit time.Duration) error {
	return n.within(limit, func() error {
		out, err := n.Sh(quick, "stat -f -c '%b %S' "+root+"/volumes/"+volume)
		var blocks, size int
		if err == nil {
			_, err = fmt.Sscan(out, &blocks, &size)
		}
		if mib := blocks * size >> 20; err == nil && mib < least {
			err = fmt.Errorf("the filesystem has %d MiB, not %d", mib, least)
		}
		return err
	})
}

// userspace starts the plugin of a node anew, with the mapper that needs no rbd.
func (n *node) userspace() error {
	if err := n.stop("TERM", 8*time.Second); err != nil {
		return err
	}
	if _, err := n.Sh(quick, "modprobe -a fuse loop"); err != nil {
		return err
	}
	return n.start("docker-volume-rbd", "RBD_MAPPER=fuse")
}

// made makes a volume with options, and removes it after the test.
func made(t *testing.T, name string, options map[string]string) {
	t.Helper()
	_, err := one.volume(time.Minute, "Create", name, "", options)
	must(t, err)
	t.Cleanup(func() {
		if _, err := one.volume(time.Minute, "Remove", name, "", nil); err != nil {
			t.Error(err)
		}
	})
}

// put writes a file and syncs it; expect reads it.
func (n *node) put(volume, text string) error {
	_, err := n.Sh(quick, "echo "+text+" | dd of="+root+"/volumes/"+volume+"/file conv=fsync 2>/dev/null")
	return err
}

func (n *node) expect(t *testing.T, volume, text string) {
	t.Helper()
	if out, err := n.Sh(quick, "cat "+root+"/volumes/"+volume+"/file"); err != nil || out != text {
		t.Errorf("%s reads %q, %v; want %q", n.Name, out, err, text)
	}
}

// On the kernel's client, and in userspace, the filesystem follows its image while it
// is mounted. ext4 is only tested here: it wants a capability that not every
// container for tests has; for the others in userspace there is test/integration.
func TestGrowthWhileItIsMounted(t *testing.T) {
	plugin(t)
	must(t, two.userspace())
	for n, mapper := range map[*node]string{one: "krbd", two: "fuse"} {
		for _, fstype := range map[string][]string{"krbd": {"ext4", "xfs", "btrfs"}, "fuse": {"ext4"}}[mapper] {
			volume := volumeName(t) + "-" + mapper + "-" + fstype
			made(t, volume, map[string]string{"fstype": fstype, "size": "350M"})
			_, err := n.mount(volume, "a")
			must(t, err, n.put(volume, "before"))
			testbed.RBD(t, "resize", "--no-progress", "--size", "700M", "rbd/"+volume)
			began := time.Now()
			must(t, n.larger(volume, 550, time.Minute))
			t.Logf("figure: %s, %s: the filesystem is larger %d ms after rbd resize", mapper, fstype, time.Since(began).Milliseconds())
			n.expect(t, volume, "before")
			must(t, n.unmount(volume, "a"))
		}
	}
}

// dm-crypt over the kernel's client opens what librbd opens in userspace, and the
// other way round; it grows while it is mounted.
func TestAnEncryptedVolumeOnBothMappers(t *testing.T) {
	plugin(t)
	testbed.Passphrase(t, "both", "open sesame")
	volume := volumeName(t)
	made(t, volume, map[string]string{"size": "128M", "encryption": "luks2", "passphrase": "ceph:both"})
	_, err := one.mount(volume, "a")
	must(t, err, one.put(volume, "by-krbd"))
	out, err := one.Sh(quick, "grep ' "+root+"/volumes/"+volume+" ' /proc/mounts; cat /sys/block/dm-*/dm/uuid")
	must(t, err)
	if !strings.HasPrefix(out, "/dev/dm-") || !strings.Contains(out, "CRYPT-LUKS2-") {
		t.Errorf("mounted from %s", out)
	}
	testbed.RBD(t, "resize", "--no-progress", "--size", "256M", "rbd/"+volume)
	must(t, one.larger(volume, 200, time.Minute), one.unmount(volume, "a"))

	must(t, two.userspace())
	_, err = two.mount(volume, "b")
	must(t, err)
	two.expect(t, volume, "by-krbd")
	must(t, two.larger(volume, 200, time.Second), two.put(volume, "by-librbd"), two.unmount(volume, "b"))

	made(t, volume+"-x", map[string]string{"size": "400M", "fstype": "xfs", "encryption": "luks2", "passphrase": "ceph:both"})
	_, err = two.mount(volume+"-x", "b")
	must(t, err, two.put(volume+"-x", "xfs"), two.unmount(volume+"-x", "b"))
	_, err = one.mount(volume+"-x", "a")
	must(t, err)
	one.expect(t, volume+"-x", "xfs")
	must(t, one.unmount(volume+"-x", "a"))

	testbed.Passphrase(t, "both", "open barley")
	if _, err := one.mount(volume, "c"); err == nil || !strings.Contains(err.Error(), "the passphrase does not open the encrypted image") {
		t.Errorf("with another passphrase: %v", err)
	}
	testbed.Passphrase(t, "both", "open sesame")
	_, err = one.mount(volume, "d")
	must(t, err)
	one.expect(t, volume, "by-librbd")
	out, err = one.Sh(quick, `printf 'open ses' >/run/secret; echo ame >>/run/secret; dmesg >/run/dmesg
		for place in /run/dmesg /run/plugin.log /proc/keys /proc/mounts /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
			! cat $place 2>/dev/null | grep -aqF -f /run/secret || echo $place
		done; rm /run/secret /run/dmesg`)
	must(t, err)
	if out != "" {
		t.Errorf("the passphrase is in %s", out)
	}
	// The plugin dies, and finds the volume again.
	must(t, one.stop("KILL", 8*time.Second), one.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	_, err = one.mount(volume, "e")
	must(t, err)
	one.expect(t, volume, "by-librbd")
	must(t, one.unmount(volume, "e"))
}

// A snapshot is mounted on two kernels at once, beside its volume.
func TestASnapshotOnTwoKernels(t *testing.T) {
	plugin(t)
	w := watched(t)
	ended := w.write(t, one)
	testbed.RBD(t, "snap", "create", "--no-progress", "rbd/"+w.volume+"@live")
	look := w.volume + "-look"
	made(t, look, map[string]string{"snapshot": w.volume + "@live"})
	for _, n := range []*node{one, two} {
		path, err := n.mount(look, "a")
		must(t, err)
		if out, err := n.Sh(quick, "test -s "+path+"/log && ! touch "+path+"/x 2>&1"); err != nil || !strings.Contains(out, "Read-only file system") {
			t.Errorf("%s: %q, %v", n.Name, out, err)
		}
	}
	must(t, one.unmount(look, "a"))
	if _, err := one.volume(time.Minute, "Remove", look, "", nil); err == nil || !strings.Contains(err.Error(), "mounted read-only by node node2 (10.11.14.12:0/") {
		t.Errorf("removed while the other node has it: %v", err)
	}
	must(t, two.unmount(look, "a"))
	w.wait(t, one, 20)
	w.stopped(t, one, ended)
	testbed.RBD(t, "snap", "rm", "--no-progress", "rbd/"+w.volume+"@live") // the copy outlives it
	_, err := two.mount(look, "b")
	must(t, err, two.unmount(look, "b"))
}

// A copy is made independent of its original while it is mounted and written to: the
// manager and the kernel take Ceph's exclusive lock from each other, and nothing is
// lost. Meanwhile the volume moves.
func TestACopyIsFlattenedWhileItIsWrittenTo(t *testing.T) {
	plugin(t)
	w := watched(t)
	made(t, w.volume+"-origin", map[string]string{"size": "256M"})
	path, err := one.mount(w.volume+"-origin", "a")
	must(t, err)
	_, err = one.Sh(time.Minute, "dd if=/dev/urandom of="+path+"/data bs=1M count=150 conv=fsync 2>/dev/null")
	must(t, err, one.unmount(w.volume+"-origin", "a"))
	_, err = one.volume(time.Minute, "Remove", w.volume, "", nil)
	must(t, err)
	_, err = one.volume(time.Minute, "Create", w.volume, "", map[string]string{"from": w.volume + "-origin"})
	must(t, err)
	ended := w.write(t, one)
	testbed.Ceph(t, "rbd", "task", "add", "flatten", "rbd/"+w.volume)
	w.wait(t, one, 20)
	w.stopped(t, one, ended)
	ended = w.write(t, two)
	must(t, two.within(2*time.Minute, func() error {
		if out := testbed.RBD(t, "info", "rbd/"+w.volume); strings.Contains(out, "parent:") {
			return fmt.Errorf("still a clone; tasks: %s", testbed.Ceph(t, "rbd", "task", "list"))
		}
		return nil
	}))
	w.wait(t, two, 20)
	w.stopped(t, two, ended)
}
