package krbd

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/guest"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// node is a guest with Ceph's configuration, and with the plugin as a process of
// its own when that is asked for.
type node struct{ *guest.Guest }

const (
	socket = "/run/rbd.sock"
	root   = "/var/lib/docker-volume-rbd"
	quick  = time.Minute // for a command that only computes
)

// boot boots the guest; it tries twice.
func (n *node) boot() error {
	retried, err := n.Boot()
	if retried != nil {
		fmt.Printf("==> INFRASTRUCTURE: %s has booted at the second try only: %v\n", n.Name, retried)
	}
	if err == nil {
		err = n.prepare()
	}
	return err
}

// prepare does what an admin does to a new node.
func (n *node) prepare() error {
	_, err := n.Sh(quick, "mkdir -p /etc/ceph && mount --bind "+filepath.Join(filepath.Dir(testbed.Conf()), "etc-ceph")+" /etc/ceph")
	return err
}

// start starts the plugin: the program as it is, or another build of it, with
// settings from NAME=VALUE words.
func (n *node) start(program string, settings ...string) error {
	line := fmt.Sprintf("mkdir -p %s; cd /; setsid env LOG_LEVEL=debug", root)
	for _, s := range settings {
		line += " '" + s + "'"
	}
	line += fmt.Sprintf(" %s -socket %s -root %s >>/run/plugin.log 2>&1 </dev/null & echo $! >/run/plugin.pid", n.file(program), socket, root)
	if _, err := n.Sh(quick, line); err != nil {
		return err
	}
	return n.within(time.Minute, func() error {
		_, err := n.Post(5*time.Second, socket, "/Plugin.Activate", "")
		return err
	})
}

// within is tool.Within, by the guest's pace.
func (n *node) within(limit time.Duration, try func() error) error {
	return tool.Within(n.Stretch(limit), try)
}

// sleep gives the guest time, by its pace, for what is not to be seen.
func (n *node) sleep(d time.Duration) { time.Sleep(n.Stretch(d)) }

// stop ends the plugin by a signal and waits for its end.
func (n *node) stop(signal string, limit time.Duration) error {
	limit = n.Stretch(limit)
	_, err := n.Sh(limit+5*time.Second, fmt.Sprintf(`pid=$(cat /run/plugin.pid); kill -%s $pid 2>/dev/null || exit 0
		for i in $(seq %d); do [ -e /proc/$pid ] || exit 0; sleep 0.1; done; echo the plugin is still there; exit 1`, signal, int(limit.Seconds()*10)))
	return err
}

// log is what the plugin has said.
func (n *node) log() string {
	out, _ := n.Sh(quick, "cat /run/plugin.log")
	return out
}

// answer is that of a VolumeDriver request.
type answer struct {
	Err        string
	Mountpoint string
	Volume     struct {
		Mountpoint string
		Status     map[string]any
	}
}

// ask sends a request to the plugin.
func (n *node) ask(limit time.Duration, path string, request any) (a answer, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return a, err
	}
	out, err := n.Post(limit, socket, path, string(body))
	if err == nil {
		err = json.Unmarshal([]byte(out), &a)
	}
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	return a, err
}

func (n *node) volume(limit time.Duration, op, name, id string, opts map[string]string) (answer, error) {
	return n.ask(limit, "/VolumeDriver."+op, map[string]any{"Name": name, "ID": id, "Opts": opts})
}

func (n *node) create(name string) error {
	_, err := n.volume(time.Minute, "Create", name, "", map[string]string{"size": "256M"})
	return err
}

func (n *node) mount(name, id string) (path string, err error) {
	a, err := n.volume(2*time.Minute, "Mount", name, id, nil)
	return a.Mountpoint, err
}

// mountAgain mounts as swarm does, on a node whose network was away: the plugin may
// still take Ceph for away, and says so soon.
func (n *node) mountAgain(name, id string) error {
	var final error
	err := n.within(time.Minute, func() error {
		_, err := n.mount(name, id)
		if err != nil && strings.Contains(err.Error(), "ceph cannot be asked") {
			return err
		}
		final = err
		return nil
	})
	return errors.Join(err, final)
}

func (n *node) unmount(name, id string) error {
	_, err := n.volume(time.Minute, "Unmount", name, id, nil)
	return err
}

// devices are those of rbd, by image name.
func (n *node) devices() (string, error) {
	return n.Sh(quick, "grep -H . /sys/bus/rbd/devices/*/name 2>/dev/null; true")
}

// left is what a node should not have when nobody uses a volume: devices, mounts, mount points.
func (n *node) left() (string, error) {
	return n.Sh(quick, fmt.Sprintf(`grep -H . /sys/bus/rbd/devices/*/name 2>/dev/null; grep %[1]s/volumes/ /proc/mounts; ls %[1]s/volumes 2>/dev/null; true`, root))
}

// plugin starts the plugin on both nodes for a test, and looks at its end that
// it leaves nothing.
func plugin(t *testing.T, settings ...string) {
	t.Helper()
	settings = append(settings, "RBD_MAPPER=krbd")
	both := func(do func(n *node) error) error {
		var errs [2]error
		var wg sync.WaitGroup
		for i, n := range []*node{one, two} {
			wg.Go(func() { errs[i] = do(n) })
		}
		wg.Wait()
		return errors.Join(errs[:]...)
	}
	must(t, both(func(n *node) error { return n.start("docker-volume-rbd", settings...) }))
	t.Cleanup(func() {
		if err := both(func(n *node) error { return n.stop("TERM", 8*time.Second) }); err != nil {
			t.Error(err)
		}
		for _, n := range []*node{one, two} {
			if left, err := n.left(); left != "" || err != nil {
				t.Errorf("%s has something left: %s, %v", n.Name, left, err)
			}
			if t.Failed() {
				t.Logf("log of the plugin of %s:\n%s", n.Name, n.log())
				out, _ := n.Sh(quick, "dmesg | tail -n 30")
				t.Logf("kernel's log of %s:\n%s", n.Name, out)
			}
			_, _ = n.Sh(quick, "rm -f /run/plugin.log")
		}
	})
}
