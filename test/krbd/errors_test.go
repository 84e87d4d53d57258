package krbd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// source is the device of a mounted volume, without /dev.
func (n *node) source(t *testing.T, volume string) string {
	t.Helper()
	out, err := n.Sh(quick, "findmnt -n -o SOURCE "+root+"/volumes/"+volume)
	must(t, err)
	return strings.TrimPrefix(out, "/dev/")
}

// breakExt4 lets ext4 meet an error, and waits for no more than the kernel's answer.
func (n *node) breakExt4(t *testing.T, volume string) {
	t.Helper()
	_, err := n.Sh(quick, "echo broken >/sys/fs/ext4/"+n.source(t, volume)+"/trigger_fs_error")
	must(t, err)
}

// Errors stop ext4, and most kernels say so neither in the mount table nor when the
// root is opened. It is seen on every kernel and every kind of device, and who mounts
// the volume gets it anew, or is told who has to let go of it.
func TestErrorsStopAFilesystem(t *testing.T) {
	plugin(t)
	testbed.Passphrase(t, "errors", "open sesame")
	must(t, two.userspace())
	for _, row := range []struct {
		node    *node
		kind    string
		device  string
		options map[string]string
	}{
		{one, "krbd", "rbd", map[string]string{"size": "64M"}},
		{one, "krbd-options", "rbd", map[string]string{"size": "64M", "mountOptions": "noatime"}},
		{one, "krbd-luks", "dm-", map[string]string{"size": "80M", "encryption": "luks2", "passphrase": "ceph:errors"}},
		{two, "fuse", "loop", map[string]string{"size": "64M"}},
	} {
		t.Run(row.kind, func(t *testing.T) {
			n, volume := row.node, volumeName(t)
			made(t, volume, row.options)
			path, err := n.mount(volume, "a")
			must(t, err, n.put(volume, "before"))
			if source := n.source(t, volume); !strings.HasPrefix(source, row.device) {
				t.Fatalf("mounted from %s", source)
			}
			status := func() string {
				a, err := n.volume(time.Minute, "Get", volume, "", nil)
				must(t, err)
				return fmt.Sprint(a.Volume.Status["error"])
			}
			if says := status(); says != "<nil>" {
				t.Fatalf("before there is an error: %s", says)
			}
			_, err = n.Sh(quick, "cd "+path+" && { setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/run/holder; }")
			must(t, err)
			n.breakExt4(t, volume)
			if says := status(); !strings.Contains(says, "errors have ") {
				t.Errorf("the status says %s", says)
			}
			if _, err := n.mount(volume, "b"); err == nil || !strings.Contains(err.Error(), "containers of this node still use it") {
				t.Errorf("mounted beside one that has the dead filesystem: %v", err)
			}
			_, err = n.Sh(quick, "kill $(cat /run/holder)")
			must(t, err)
			_, err = n.mount(volume, "b")
			must(t, err)
			n.expect(t, volume, "before")
			must(t, n.put(volume, "after"))
			if says := status(); says != "<nil>" {
				t.Errorf("mounted anew: %s", says)
			}
			must(t, n.unmount(volume, "b"))
			_, err = n.mount(volume, "c") // what was repaired stays so
			must(t, err)
			n.expect(t, volume, "after")
			must(t, n.unmount(volume, "c"))
		})
	}
}
