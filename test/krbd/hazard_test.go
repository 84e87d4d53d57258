package krbd

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/krbd/wire"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// raw writes to a device past all caches, beside the filesystem: ext4 leaves the
// first sectors alone.
func (n *node) raw(op, device, text string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), n.Stretch(40*time.Second))
	defer cancel()
	a, err := n.call(ctx, wire.Request{Op: op, Device: device, Text: text})
	if err == nil {
		err = a.Err()
	}
	return a.Text, err
}

// device is that of the only mapping of a node.
func (n *node) device(t *testing.T) string {
	t.Helper()
	out, err := n.Sh(quick, "ls /sys/bus/rbd/devices")
	must(t, err)
	if out == "" || strings.Contains(out, "\n") {
		t.Fatalf("%s has the devices %q, not one", n.Name, out)
	}
	return "/dev/rbd" + out
}

// A node loses its plugin and its network, and another one takes the volume.
// When the network is back nobody is there to take the stale mapping away. What
// it can do depends on how long the fence lasts: the kernel does not remember
// that it was fenced. (The taker's kernel fences as well, when it breaks the lock
// of the dead client, for Ceph's default hour: here that is 15 s.)
func TestAStaleMappingWritesAgainWhenItsFenceEnds(t *testing.T) {
	const short = 15
	testbed.Ceph(t, "config", "set", "mon", "mon_osd_blocklist_default_expire", fmt.Sprint(short))
	defer testbed.Ceph(t, "config", "rm", "mon", "mon_osd_blocklist_default_expire")
	for _, row := range []struct {
		name, program string
		settings      []string
		writes        bool
	}{
		{"with the fence cut to 5 s it does", "sabotaged", []string{"SABOTAGE=brief"}, true},
		{"with the real one it cannot", "docker-volume-rbd", nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			plugin(t)
			testbed.WatchTimeout(t, watchTimeout)
			volume := volumeName(t)
			must(t, one.create(volume), one.stop("TERM", 8*time.Second))
			must(t, one.start(row.program, append(row.settings, "RBD_MAPPER=krbd")...), one.serveMapper(), two.serveMapper())
			_, err := two.mount(volume, "a")
			must(t, err, two.stop("KILL", 5*time.Second))
			stale := two.device(t)
			must(t, two.Cut())
			_, err = one.mount(volume, "b")
			must(t, err)
			taken := time.Now()
			must(t, two.Heal())
			if _, err := one.raw("write", one.device(t), "the new holder's"); err != nil {
				t.Fatal(err)
			}
			// The kernel may take longer than the short fence lasts to find its servers again: then the first write of all gets through.
			_, written := two.raw("write", stale, "the old holder's")
			for written != nil && time.Since(taken) < short*time.Second+two.Stretch(10*time.Second) {
				time.Sleep(time.Second)
				_, written = two.raw("write", stale, "the old holder's")
			}
			text, err := one.raw("read", one.device(t), "")
			must(t, err)
			t.Logf("%v after the fence: the old holder's write says %v, the new holder reads %q", time.Since(taken).Round(time.Second), written, text)
			if got := written == nil; got != row.writes || (text == "the old holder's") != row.writes {
				t.Errorf("the stale mapping could write: %v, want %v", got, row.writes)
			}
			// What a plugin that starts makes of it, fenced or not.
			must(t, two.start("docker-volume-rbd", "RBD_MAPPER=krbd"), two.clean(volume, 10*time.Second))
			must(t, one.unmount(volume, "b"))
			_, err = two.volume(time.Minute, "Remove", volume, "", nil)
			must(t, err)
		})
	}
}
