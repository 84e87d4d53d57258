package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// plugin is the program itself, as a process that can be killed.
type plugin struct {
	tb             testing.TB
	cfg            rbd.Config
	name           string
	root, run, log string
	socket         string
	env            []string // for test/faults: more than every plugin of the tests has
	settings       []string // as an operator makes them
	cmd            *exec.Cmd
	http           http.Client
}

func newPlugin(tb testing.TB, cfg rbd.Config, name string) *plugin {
	tb.Helper()
	p := unstarted(tb, cfg, name)
	tb.Cleanup(func() {
		if p.cmd != nil {
			p.stop(unix.SIGTERM)
		}
		testbed.NothingLeft(tb, p.run, filepath.Join(p.root, "volumes"))
		if tb.Failed() {
			log, _ := os.ReadFile(p.log)
			tb.Logf("log of plugin %s:\n%s", name, log)
		}
	})
	p.start()
	return p
}

func unstarted(tb testing.TB, cfg rbd.Config, name string) *plugin {
	tb.Helper()
	dir := tb.TempDir()
	p := &plugin{
		tb: tb, cfg: cfg, name: name,
		root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"), log: filepath.Join(dir, "log"), socket: filepath.Join(dir, "sock"),
	}
	p.http.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.socket)
	}}
	return p
}

func (p *plugin) start() {
	p.tb.Helper()
	if err := p.launch(); err != nil {
		p.tb.Fatal(err)
	}
}

// launch starts the process and waits until it answers.
func (p *plugin) launch() error {
	path := testbed.Program(p.tb)
	if p.env != nil {
		path = testbed.Sabotaged(p.tb)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(path, "-socket", p.socket, "-root", p.root, "-run", p.run, "-conf", p.cfg.ConfFile)
	p.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "NODE_NAME=" + p.name, "RBD_MAPPER=fuse", "VOLUME_TRASH=0", "LOG_LEVEL=debug",
		"RBD_CONF_NAMESPACE=" + p.cfg.Namespace, "RBD_CONF_KEYRING_USER=" + p.cfg.User,
	}
	p.cmd.Env = append(append(p.cmd.Env, p.settings...), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		_, err := p.call("Plugin.Activate", nil)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the plugin does not answer: %w", err)
		}
	}
}

// stop ends the process; its image servers live on if it is killed.
func (p *plugin) stop(signal unix.Signal) {
	_ = p.cmd.Process.Signal(signal)
	_ = p.cmd.Wait()
	p.cmd = nil
}

// call sends a request as Docker does and returns the answer.
func (p *plugin) call(method string, request map[string]any) (answer map[string]any, err error) {
	return p.callWithin(context.Background(), method, request)
}

// callWithin hangs up when its context ends.
func (p *plugin) callWithin(ctx context.Context, method string, request map[string]any) (answer map[string]any, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r, err := p.http.Do(post)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Body.Close() }()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	if text, _ := answer["Err"].(string); text != "" {
		return answer, fmt.Errorf("%s", text)
	}
	return answer, nil
}

func (p *plugin) must(method string, request map[string]any) map[string]any {
	p.tb.Helper()
	answer, err := p.call("VolumeDriver."+method, request)
	if err != nil {
		p.tb.Fatalf("%s: %v", method, err)
	}
	return answer
}

// The plugin is killed at some moment between Create and the end of the first
// Mount, and started again: the volume does not exist, or its mount succeeds,
// here or, every fourth time, on another node.
func TestKilledAtAnyMomentOfTheFirstMount(t *testing.T) {
	testbed.WatchTimeout(t, 10)
	cfg := testbed.Namespace(t)
	one, two := newPlugin(t, cfg, "one"), newPlugin(t, cfg, "two")
	// A Create and a first Mount take some 100 ms here; beyond, nothing is cut.
	for i := range 24 {
		volume := fmt.Sprintf("v%d", i)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := one.call("VolumeDriver.Create", map[string]any{"Name": volume}); err == nil {
				_, _ = one.call("VolumeDriver.Mount", map[string]any{"Name": volume, "ID": "1"})
			}
		}()
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		one.stop(unix.SIGKILL)
		<-done
		one.start()
		next := one
		if i%4 == 3 { // it has to wait for Ceph to give up the dead one
			next = two
		}
		start := time.Now()
		_, err := next.call("VolumeDriver.Mount", map[string]any{"Name": volume, "ID": "2"})
		if err != nil && strings.Contains(err.Error(), "not found") {
			next.must("Create", map[string]any{"Name": volume})
			_, err = next.call("VolumeDriver.Mount", map[string]any{"Name": volume, "ID": "2"})
		}
		if err != nil {
			t.Fatalf("killed after %d ms: %v", i*5, err)
		}
		t.Logf("killed after %d ms: mounted after %v on %s", i*5, time.Since(start).Round(time.Millisecond), next.name)
		put(t, filepath.Join(next.root, "volumes", volume, "file"), "data")
		next.must("Unmount", map[string]any{"Name": volume, "ID": "2"})
		next.must("Mount", map[string]any{"Name": volume, "ID": "3"})
		expect(t, filepath.Join(next.root, "volumes", volume, "file"), "data")
		next.must("Unmount", map[string]any{"Name": volume, "ID": "3"})
		next.must("Remove", map[string]any{"Name": volume})
	}
	if left := records(t, cfg); left != "" {
		t.Errorf("records left: %s", left)
	}
}

// Killed while a volume is in use, the plugin finds it again: its image server
// lives on outside a container, and what is held is kept.
func TestKilledWhileAVolumeIsInUse(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newPlugin(t, cfg, "one")
	one.must("Create", map[string]any{"Name": "v"})
	dir := one.must("Mount", map[string]any{"Name": "v", "ID": "1"})["Mountpoint"].(string)
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	one.stop(unix.SIGKILL)
	if _, err := file.WriteString("through the restart"); err != nil {
		t.Error(err)
	}
	one.start()
	if err := file.Sync(); err != nil {
		t.Error(err)
	}
	one.must("Mount", map[string]any{"Name": "v", "ID": "2"})
	expect(t, filepath.Join(dir, "file"), "through the restart")
	_ = file.Close()
	one.must("Unmount", map[string]any{"Name": "v", "ID": "2"})
	one.must("Unmount", map[string]any{"Name": "v", "ID": "1"})
	one.must("Remove", map[string]any{"Name": "v"})
}

// Ended in an orderly way it leaves nothing that nobody uses.
func TestAnOrderlyEndLetsGo(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newPlugin(t, cfg, "one"), newPlugin(t, cfg, "two")
	one.must("Create", map[string]any{"Name": "v"})
	one.must("Mount", map[string]any{"Name": "v", "ID": "1"})
	one.stop(unix.SIGTERM)
	start := time.Now()
	two.must("Mount", map[string]any{"Name": "v", "ID": "2"})
	t.Logf("the next node had it after %v", time.Since(start).Round(time.Millisecond))
	two.must("Unmount", map[string]any{"Name": "v", "ID": "2"})
	for ms := range 10 { // also of what it does when it starts
		one.start()
		time.Sleep(time.Duration(ms) * time.Millisecond)
		one.stop(unix.SIGTERM)
		testbed.NothingLeft(t, one.run, filepath.Join(one.root, "volumes"))
	}
	one.start()
}

// A client that hangs up in the midst of a mount, as podman does after 5 s, asks again
// with the same id: it finds the volume, and its one unmount leaves nothing.
func TestAClientThatHangsUp(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newPlugin(t, cfg, "one")
	one.must("Create", map[string]any{"Name": "v"})
	// A first mount takes some 80 ms here. Whoever hangs up when the answer is on
	// its way has got it, as far as the plugin can tell.
	heard := 0
	for ms := range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(ms*4)*time.Millisecond)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/VolumeDriver.Mount", strings.NewReader(`{"Name":"v","ID":"1"}`))
		if err != nil {
			t.Fatal(err)
		}
		answered := false
		if response, err := one.http.Do(r); err == nil {
			_, err = io.ReadAll(response.Body)
			answered = err == nil
			_ = response.Body.Close()
		}
		cancel()
		if answered {
			heard++
			one.must("Unmount", map[string]any{"Name": "v", "ID": "1"})
		}
	}
	one.must("Mount", map[string]any{"Name": "v", "ID": "1"})
	one.must("Unmount", map[string]any{"Name": "v", "ID": "1"})
	log, err := os.ReadFile(one.log)
	if err != nil {
		t.Fatal(err)
	}
	for range len(regexp.MustCompile(`(?m) msg=ok .* op=mount `).FindAll(log, -1)) - heard - 1 {
		one.must("Unmount", map[string]any{"Name": "v", "ID": "1"})
	}
	testbed.NothingLeft(t, one.run, filepath.Join(one.root, "volumes"))
	one.must("Remove", map[string]any{"Name": "v"})
}
