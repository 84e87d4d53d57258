package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/faults"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// outcome is what the user of a volume knows of it.
type outcome struct {
	created, written, removing bool
}

// life takes a volume from Create to Remove, as far as it comes.
func life(p *plugin, volume string) (o outcome, err error) {
	file := filepath.Join(p.root, "volumes", volume, "file")
	call := func(method, id string) error {
		_, err := p.call("VolumeDriver."+method, map[string]any{"Name": volume, "ID": id, "Opts": map[string]any{"size": "64M"}})
		return err
	}
	for _, step := range []func() error{
		func() error { return call("Create", "") },
		func() error { o.created = true; return call("Mount", "1") },
		func() error { return tryPut(file, volume) },
		func() error { o.written = true; return call("Unmount", "1") },
		func() error { return call("Get", "") },
		func() error { return call("Mount", "2") },
		func() error { return call("Unmount", "2") },
		func() error { o.removing = true; return call("Remove", "") },
	} {
		if err := step(); err != nil {
			return o, err
		}
	}
	return o, nil
}

// Each step of a volume's life goes wrong once, in each way: it fails; it hangs,
// until Docker hangs up; or the plugin dies right before it or right after it.
// Then the volume is what was promised: it can be mounted and has what was
// written, or it was never made, or it is gone. And nothing is left of it.
//
// A night goes through all steps (MODEL=long), each run through some.
func TestAFaultAtAnyStep(t *testing.T) {
	testbed.WatchTimeout(t, 10)
	cfg := testbed.Namespace(t)
	p, sweeper := newPlugin(t, cfg, "one"), newNode(t, cfg, "sweeper")
	again := func(env ...string) {
		if p.cmd != nil {
			p.stop(unix.SIGKILL)
		}
		p.env = env
		p.start()
	}
	list := filepath.Join(t.TempDir(), "steps")
	again("FAULT_LOG=" + list)
	if _, err := life(p, "whole"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	steps := strings.Split(strings.TrimSpace(string(data)), "\n")
	every, first := 36, rand.IntN(36)
	if os.Getenv("MODEL") == "long" {
		every, first = 1, 0
	}
	t.Logf("%d steps, of which every %d. from %d on", len(steps), every, first+1)
	injected, states, slowest, retried := map[string]int{}, map[string]int{}, time.Duration(0), 0
	for n, step := range steps {
		for k, kind := range faults.Kinds {
			if (n+k*3)%every != first%every {
				continue
			}
			where := kind + ", step " + step
			volume := fmt.Sprintf("v%d-%s", n+1, kind)
			again(fmt.Sprintf("FAULT=%s %d", kind, n+1))
			if kind == "hang" {
				p.http.Timeout = 2 * time.Second
			}
			o, err := life(p, volume)
			p.http.Timeout = 0
			injected[kind]++
			if strings.HasPrefix(kind, "die") {
				if err == nil {
					t.Fatalf("%s: the plugin lives", where)
				}
				_ = p.cmd.Wait()
				p.cmd = nil
			}
			state, err := left(p, volume)
			if err != nil {
				t.Errorf("%s: %v", where, err)
			}
			states[state]++
			if p.cmd == nil {
				again()
			}
			began := time.Now()
			tries, err := restored(p, volume, o)
			if err != nil {
				t.Fatalf("%s (%+v): %v", where, o, err)
			}
			slowest, retried = max(slowest, time.Since(began)), retried+tries
			if _, err := os.Stat(filepath.Join(p.root, "volumes", volume)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: the mount point is left: %v", where, err)
			}
			// Each plugin does so once a day, and each hour. What was killed while it deleted an
			// image is left alone for a minute, for who may be at it still.
			err = tool.Within(time.Minute, func() error {
				sweeper.Purge(t.Context())
				sweeper.Sweep(t.Context())
				if left := records(t, cfg); left != "" {
					return fmt.Errorf("records are left: %s", left)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
		}
	}
	t.Logf("figure: %d steps; faults injected: %v; they left the volume %v; slowest recovery %v, %d of the requests for it were refused and repeated",
		len(steps), injected, states, slowest.Round(time.Millisecond), retried)
}

// left tells in which of the states that the README promises a fault has left a
// volume; what is still being undone may take a moment.
func left(p *plugin, volume string) (state string, err error) {
	look := func() error {
		out, err := tool.Run(time.Minute, "rados", "-c", testbed.Conf(), "-p", p.cfg.Pool, "-N", p.cfg.Namespace, "ls")
		if err != nil {
			return err
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		image := strings.Contains(out+"\n", "rbd_id."+volume+"\n")
		guard := strings.Contains(out, "docker_volume.guard.") // only this volume has one
		mounted := strings.Contains(string(mounts), " "+filepath.Join(p.root, "volumes", volume)+" ")
		switch {
		case mounted && image && guard:
			state = "mounted"
		case mounted:
			return fmt.Errorf("mounted, but image: %t, guard: %t", image, guard)
		case image && guard:
			state = "held"
		case image:
			state = "free"
		case guard:
			state = "removed but for its guard"
		default:
			state = "not there"
		}
		return nil
	}
	return state, tool.Within(5*time.Second, look)
}

// restored does what Docker and its users do after something went wrong: they
// ask again, for half a minute. Then the volume must be as it was left.
func restored(p *plugin, volume string, o outcome) (retried int, err error) {
	ask := func(method, id string) error {
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			_, err := p.call("VolumeDriver."+method, map[string]any{"Name": volume, "ID": id, "Opts": map[string]any{"size": "64M"}})
			if err == nil || strings.Contains(err.Error(), "not found") || time.Now().After(end) {
				return err
			}
			retried++
		}
	}
	for _, id := range []string{"1", "2"} { // of whoever was told that it is mounted
		if err := ask("Unmount", id); err != nil {
			return retried, fmt.Errorf("unmount: %w", err)
		}
	}
	err = ask("Mount", "9")
	if err != nil && strings.Contains(err.Error(), "not found") && (!o.created || o.removing) {
		o.written = false
		if err = ask("Create", ""); err == nil {
			err = ask("Mount", "9")
		}
	}
	if err != nil {
		return retried, err
	}
	got, err := os.ReadFile(filepath.Join(p.root, "volumes", volume, "file"))
	if o.written && (err != nil || string(got) != volume) {
		return retried, fmt.Errorf("what was written is lost: %q, %w", got, err)
	}
	if err := ask("Unmount", "9"); err != nil {
		return retried, err
	}
	return retried, ask("Remove", "")
}
