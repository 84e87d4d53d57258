package krbd

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// What an admin does to a mounted volume from elsewhere.
func TestASnapshotAResizeAndMetadataWhileItIsMounted(t *testing.T) {
	plugin(t)
	w := watched(t)
	ended := w.write(t, one)
	spec := "rbd/" + w.volume
	for range 3 {
		testbed.RBD(t, "snap", "create", "--no-progress", spec+"@live")
		w.wait(t, one, 5)
		testbed.RBD(t, "image-meta", "set", spec, "note", "hello")
		w.wait(t, one, 5)
		testbed.RBD(t, "snap", "rm", "--no-progress", spec+"@live")
		w.wait(t, one, 5)
	}
	testbed.RBD(t, "resize", "--no-progress", "--size", "512M", spec)
	w.wait(t, one, 20)
	device := one.device(t)
	must(t, one.within(20*time.Second, func() error {
		out, err := one.Sh(quick, "cat /sys/block/"+strings.TrimPrefix(device, "/dev/")+"/size")
		if err == nil && out != "1048576" {
			return errors.New("the device has " + out + " sectors")
		}
		return err
	}))
	must(t, one.larger(w.volume, 450, time.Minute)) // by itself
	w.wait(t, one, 20)
	w.stopped(t, one, ended)
}

// attributes are those of the only device, without those of its client.
func (n *node) attributes(t *testing.T) map[string]string {
	t.Helper()
	device := strings.TrimPrefix(n.device(t), "/dev/rbd")
	out, err := n.Sh(quick, "cd /sys/bus/rbd/devices/"+device+" && grep -H . cluster_fsid current_snap features image_id major minor name parent pool pool_id pool_ns size snap_id")
	must(t, err)
	all := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		all[name] = value
	}
	return all
}

// Ceph's own tools understand what we map, as it is what they map.
func TestCephsToolsUnderstandOurMappings(t *testing.T) {
	plugin(t)
	volume := volumeName(t)
	must(t, one.create(volume))
	_, err := one.mount(volume, "a")
	must(t, err)
	ours := one.attributes(t)
	out, err := one.Sh(quick, "rbd device list --format json")
	must(t, err)
	var list []struct{ Pool, Name, Device string }
	must(t, json.Unmarshal([]byte(out), &list))
	if len(list) != 1 || list[0].Pool != "rbd" || list[0].Name != volume || list[0].Device != one.device(t) {
		t.Errorf("rbd device list: %s", out)
	}
	secretIsNowhere(t)
	must(t, one.unmount(volume, "a"))

	out, err = one.Sh(quick, "rbd --id docker device map -o noudev rbd/"+volume)
	must(t, err)
	theirs := one.attributes(t)
	for name, value := range ours {
		if theirs[name] != value {
			t.Errorf("%s: ours %q, of rbd device map %q", name, value, theirs[name])
		}
	}
	if len(ours) < 10 || len(theirs) != len(ours) {
		t.Errorf("ours %v, theirs %v", ours, theirs)
	}
	// What an admin has mapped is not ours: not used, not taken away.
	if _, err := one.volume(time.Minute, "Remove", volume, "", nil); err == nil || !strings.Contains(err.Error(), "in use by 10.11.14.11:0/") {
		t.Errorf("removing what an admin has mapped: %v", err)
	}
	must(t, one.stop("TERM", 8*time.Second), one.start("docker-volume-rbd", "RBD_MAPPER=krbd")) // it compares, twice
	one.sleep(time.Second)
	if now := one.attributes(t); now["name"] != volume {
		t.Errorf("the admin's mapping is gone: %v", now)
	}
	_, err = one.Sh(quick, "rbd device unmap -o noudev "+out)
	must(t, err)

	// And an admin can take away what we have mapped.
	_, err = one.mount(volume, "b")
	must(t, err)
	_, err = one.Sh(quick, "umount "+root+"/volumes/"+volume+" && rbd device unmap -o noudev "+one.device(t))
	must(t, err, one.unmount(volume, "b"))
	_, err = one.mount(volume, "c")
	must(t, err, one.unmount(volume, "c"))
	_, err = one.volume(time.Minute, "Remove", volume, "", nil)
	must(t, err)
}

// secretIsNowhere looks for the key wherever a user of the node could.
func secretIsNowhere(t *testing.T) {
	t.Helper()
	out, err := one.Sh(quick, `sed -n 's/.*key = //p' /etc/ceph/ceph.client.docker.keyring >/run/secret
		for place in /etc/ceph/ceph.client.docker.keyring /run/plugin.log /proc/keys /proc/mounts /sys/bus/rbd/devices/*/config_info /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
			! cat $place 2>/dev/null | grep -aqF -f /run/secret || echo $place
		done
		! dmesg | grep -F -f /run/secret; rm /run/secret`)
	must(t, err)
	if out != "/etc/ceph/ceph.client.docker.keyring" {
		t.Errorf("the key is in %q", out)
	}
}
