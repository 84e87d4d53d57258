package krbd

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

// The engine in a guest has its data in the guest's memory.
const engineDir = "/run/e"

const (
	pluginName = "rbd:latest"
	writerName = "writer:test"
)

// reachable are flags of dockerd that let the client outside ask it.
var reachable = []string{"-H", fmt.Sprintf("tcp://10.0.2.15:%d", dockerPort), "--tls=false"}

func script(name string) string {
	path, _ := filepath.Abs(filepath.Join("..", name))
	return path
}

// engine starts dockerd in a guest, with the managed plugin as an admin installs
// it, and ends it with the test.
func (n *node) engine(t *testing.T, flags ...string) {
	t.Helper()
	_, err := n.Sh(quick, "mkdir -p "+engineDir+" && mount -t tmpfs -o size=2g tmpfs "+engineDir)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := n.Sh(quick, "tail -n 60 "+engineDir+"/d/dockerd.log; dmesg | tail -n 20")
			t.Logf("the engine of %s: %s", n.Name, out)
		}
		_, err := n.Run(3*time.Minute, script("engine.sh"), "stop", engineDir+"/d")
		if err == nil {
			_, err = n.Sh(quick, "umount -l "+engineDir)
		}
		if err != nil {
			t.Error(err)
		}
	})
	// dockerd gives containerd 15 s; a guest may need as long to read it for the first time.
	_, err = n.Run(2*quick, "containerd", "--version")
	must(t, err)
	began := time.Now()
	_, err = n.Run(3*time.Minute, slices.Concat([]string{script("engine.sh"), "start", engineDir + "/d"}, reachable, flags)...)
	must(t, err)
	up := time.Since(began)
	root := t.TempDir()
	for _, args := range [][]string{{"cp", n.file("writer"), root + "/writer"}, {"tar", "-C", root, "-cf", root + ".tar", "writer"}} {
		_, err = tool.Run(quick, args[0], args[1:]...)
		must(t, err)
	}
	n.docker(t, "import", "-c", `ENTRYPOINT ["/writer"]`, root+".tar", writerName)
	_, err = n.Run(4*time.Minute, "docker", "-H", "unix://"+engineDir+"/d/docker.sock", "plugin", "create", pluginName, pluginDir)
	must(t, err)
	n.docker(t, "plugin", "set", pluginName, "LOG_LEVEL=debug")
	n.docker(t, "plugin", "enable", "--timeout", "0", pluginName)
	t.Logf("the engine of %s was up after %v, the plugin after %v", n.Name, up.Round(time.Second), time.Since(began).Round(time.Second))
}

// docker runs the client, which is outside, on the engine, which is inside.
func (n *node) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.tryDocker(args...)
	must(t, err)
	return out
}

func (n *node) tryDocker(args ...string) (string, error) {
	return tool.Run(n.Stretch(3*time.Minute), "docker", append([]string{"-H", strings.Replace(n.URL(dockerPort), "http", "tcp", 1)}, args...)...)
}

// container writes in the volume.
type container struct {
	*node
	id, pid string
}

func (n *node) run(t *testing.T, volume string) *container {
	t.Helper()
	id := n.docker(t, "run", "-d", "--network", "host", "--stop-timeout", "5", "--mount", "type=volume,volume-driver=rbd,src="+volume+",dst=/data,volume-opt=size=256M",
		writerName, "-report", "-", "-node", n.Name)
	t.Cleanup(func() { _, _ = n.tryDocker("rm", "-f", id) })
	c := &container{n, id, n.docker(t, "inspect", "-f", "{{.State.Pid}}", id)}
	c.writes(t)
	return c
}

// writes waits until the container has made progress.
func (c *container) writes(t *testing.T) {
	t.Helper()
	size := func() (out string, err error) { return c.Sh(quick, "stat -c %s /proc/"+c.pid+"/root/data/log") }
	var before string
	err := c.within(time.Minute, func() (err error) { // it may have just been started
		before, err = size()
		return err
	})
	if err == nil {
		err = c.within(time.Minute, func() error {
			now, err := size()
			if err == nil && now == before {
				err = errors.New("it writes nothing any more, after " + now + " bytes")
			}
			return err
		})
	}
	if err != nil {
		logs, _ := c.tryDocker("logs", "--tail", "5", c.id)
		t.Fatalf("%v; %s", err, logs)
	}
}

// stop ends the container in order; what it has reported goes to the checker.
func (c *container) stop(t *testing.T, w *writers) {
	t.Helper()
	c.writes(t)
	c.docker(t, "stop", c.id)
	if code := c.docker(t, "inspect", "-f", "{{.State.ExitCode}}", c.id); code != "0" {
		t.Errorf("the container's exit code is %s", code)
	}
	c.ended(t, w, 5*time.Second)
}

// ended takes the container away, which must not run any more; what it has
// reported goes to the checker. The volume must be free then.
func (c *container) ended(t *testing.T, w *writers, limit time.Duration) {
	t.Helper()
	if running := c.docker(t, "inspect", "-f", "{{.State.Running}}", c.id); running != "false" {
		t.Error("the container runs")
	}
	workload.Follow(strings.NewReader(c.docker(t, "logs", c.id)), func(r workload.Report) { _ = w.Add(r) })
	c.docker(t, "rm", c.id)
	must(t, c.clean(w.volume, limit)) // mounts in the plugin's own namespace too: a device that is mounted is not unmapped
}

// crashPlugin kills the managed plugin's process; Docker starts it anew.
func (n *node) crashPlugin(t *testing.T) {
	t.Helper()
	pids := func() string {
		// From its standard input, so that grep does not find itself.
		out, err := n.Sh(quick, "echo /usr/bin/docker-volume-rbd | grep -lszxF -f - /proc/[0-9]*/cmdline | cut -d/ -f3")
		must(t, err)
		return out
	}
	before := pids()
	_, err := n.Sh(quick, "kill -KILL "+before)
	must(t, err)
	must(t, n.within(time.Minute, func() error {
		if now := pids(); now == "" || now == before {
			return errors.New("the plugin has not come back")
		}
		return nil
	}))
}

// restartEngine restarts it with these flags.
func (n *node) restartEngine(t *testing.T, flags ...string) {
	t.Helper()
	_, err := n.Run(2*time.Minute, slices.Concat([]string{script("engine.sh"), "restart", engineDir + "/d"}, reachable, flags)...)
	must(t, err)
}

func (n *node) crashEngine(t *testing.T) {
	t.Helper()
	_, err := n.Run(time.Minute, script("engine.sh"), "kill", engineDir+"/d")
	must(t, err)
	_, err = n.Run(2*time.Minute, script("engine.sh"), "start", engineDir+"/d")
	must(t, err)
}

// release has the next release of the plugin, as remote, in the storage of a registry.
// It is made outside of the guest, where it takes seconds, and is read-only inside.
func release(t *testing.T, remote string) (storage string) {
	t.Helper()
	dir := filepath.Join(work, "next")
	_, err := tool.Run(5*time.Minute, "sh", "-c", fmt.Sprintf(`set -e; mkdir %[1]s; cp -a %[2]s %[1]s/plugin; touch %[1]s/plugin/rootfs/etc/next
		sed -i 's/"description": "Ceph RBD volumes/"description": "The next release: Ceph RBD volumes/' %[1]s/plugin/config.json
		printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %[1]s/storage}}\nhttp: {addr: 127.0.0.1:5000}\n' >%[1]s/config.yml
		docker-registry serve %[1]s/config.yml >%[1]s/log 2>&1 </dev/null & echo $! >%[4]s
		%[3]s start %[1]s/e
		export DOCKER_HOST=unix://%[1]s/e/docker.sock
		docker plugin create %[5]s %[1]s/plugin
		docker plugin push %[5]s
		%[3]s stop %[1]s/e; kill $(cat %[4]s); rm -r %[4]s %[1]s/plugin`, dir, pluginDir, script("engine.sh"), filepath.Join(work, "registry.pid"), remote))
	must(t, err)
	return filepath.Join(dir, "storage")
}

// upgrade does what docker plugin upgrade is for, from a registry in the guest.
func (n *node) upgrade(t *testing.T) {
	t.Helper()
	const remote, registry = "127.0.0.1:5000/rbd:next", engineDir + "/registry"
	_, err := n.Sh(quick, fmt.Sprintf(`set -e; mkdir %[1]s
		printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %[2]s}, maintenance: {uploadpurging: {enabled: false}, readonly: {enabled: true}}}\nhttp: {addr: 127.0.0.1:5000}\n' >%[1]s/config.yml
		setsid docker-registry serve %[1]s/config.yml >%[1]s/log 2>&1 </dev/null & echo $! >%[1]s/pid`, registry, release(t, remote)))
	must(t, err, n.within(time.Minute, func() error {
		_, err := n.Sh(quick, "curl -sS http://127.0.0.1:5000/v2/ || { cat "+registry+"/log; exit 1; }")
		return err
	}))
	n.docker(t, "plugin", "disable", "-f", pluginName)
	n.docker(t, "plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", pluginName, remote)
	n.docker(t, "plugin", "enable", "--timeout", "0", pluginName)
	if about := n.docker(t, "plugin", "inspect", "-f", "{{.Config.Description}}", pluginName); !strings.HasPrefix(about, "The next release") {
		t.Errorf("the plugin was not upgraded: %s", about)
	}
	_, err = n.Sh(quick, "kill $(cat "+registry+"/pid)")
	must(t, err)
}

// mountsAll has a container use each kind of filesystem as the plugin makes it: its tools
// may be of a later time than the kernel, and than that of another node.
func (n *node) mountsAll(t *testing.T) {
	for fstype, size := range map[string]string{"xfs": "300M", "btrfs": "128M"} {
		volume := volumeName(t)
		n.docker(t, "volume", "create", "-d", "rbd", "-o", "size="+size, "-o", "fstype="+fstype, volume)
		w := &writers{workload.NewChecker(), volume}
		n.run(t, volume).stop(t, w)
		w.stopped(t, two, w.write(t, two))
		n.docker(t, "volume", "rm", volume)
	}
}

// On a real kernel the containers' I/O goes on whatever happens to the plugin.
func TestTheManagedPlugin(t *testing.T) {
	_, err := one.Sh(quick, "! test -e /sys/bus/rbd || rmmod rbd") // the plugin is to load it
	must(t, err)
	must(t, two.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	defer func() { must(t, two.stop("TERM", 8*time.Second)) }()
	one.engine(t, "--live-restore")
	w := &writers{workload.NewChecker(), volumeName(t)}

	c := one.run(t, w.volume)
	var inspect []struct{ Status map[string]any }
	must(t, json.Unmarshal([]byte(one.docker(t, "volume", "inspect", w.volume)), &inspect))
	status := inspect[0].Status
	if status["mapper"] != "krbd (the kernel has rbd)" || status["device"] != one.device(t) || status["node"] != "node1" {
		t.Errorf("inspect shows %v", status)
	}
	if log, err := one.Sh(quick, "grep -c 'mapper krbd (the kernel has rbd)' "+engineDir+"/d/dockerd.log"); err != nil || log == "0" {
		t.Errorf("the log does not tell which mapper it is: %s, %v", log, err)
	}
	if mod, err := one.Sh(quick, "cat /sys/module/rbd/parameters/single_major"); err != nil || mod != "Y" {
		t.Errorf("the module's single_major is %s, %v", mod, err)
	}
	c.stop(t, w)
	t.Run("this kernel mounts all", one.mountsAll)

	for _, trouble := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"crash", one.crashPlugin},
		{"disable and enable", func(t *testing.T) {
			one.docker(t, "plugin", "disable", "-f", pluginName)
			one.docker(t, "plugin", "enable", "--timeout", "0", pluginName)
		}},
		{"upgrade", one.upgrade},
		{"the engine is restarted", func(t *testing.T) { one.restartEngine(t, "--live-restore") }},
		{"the engine crashes", one.crashEngine},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			c := one.run(t, w.volume)
			device := one.device(t)
			trouble.do(t)
			c.writes(t)
			one.sleep(2 * time.Second) // the plugin has looked at what it finds
			c.writes(t)
			if now := one.device(t); now != device {
				t.Errorf("the volume was on %s, is on %s", device, now)
			}
			c.stop(t, w)
		})
	}
	w.stopped(t, two, w.write(t, two))
	t.Run("without live-restore", func(t *testing.T) {
		one.restartEngine(t, "--live-restore=false") // from now on an engine that starts ends the containers that it finds
		for name, end := range map[string]func(t *testing.T){
			"the engine is restarted": func(t *testing.T) { one.restartEngine(t, "--live-restore=false") },
			"the engine crashes":      one.crashEngine,
		} {
			t.Run(name, func(t *testing.T) {
				c := one.run(t, w.volume)
				end(t)
				c.ended(t, w, 30*time.Second) // an engine that crashed unmounts nothing; the plugin sees after 15 s that nobody has it
			})
		}
		w.stopped(t, two, w.write(t, two))
	})
	one.docker(t, "volume", "rm", w.volume)
	if left := testbed.RBD(t, "ls", "rbd"); strings.Contains(left, w.volume) {
		t.Errorf("volume rm has left %s", left)
	}
	if v := w.Violations(); len(v) > 0 {
		t.Error(errors.Join(v...))
	}
}
