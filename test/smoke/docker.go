package smoke

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// docker is an engine with the managed plugin.
type docker struct{ dir, plugin string }

func startDocker(dir, plugin, ceph string) (*docker, error) {
	d := &docker{dir: dir}
	for _, args := range [][]string{{"start", dir}, {"image", dir}} {
		if _, err := tool.Run(2*limit, filepath.Join("..", "engine.sh"), args...); err != nil {
			return d, err
		}
	}
	for _, args := range [][]string{
		{"plugin", "create", "rbd", plugin},
		append([]string{"plugin", "set", "rbd", "ceph.source=" + ceph, "NODE_NAME=one"}, settings...),
		{"plugin", "enable", "--timeout", "0", "rbd"},
	} {
		if _, err := d.run(args...); err != nil {
			return d, err
		}
	}
	id, err := d.run("plugin", "inspect", "-f", "{{.ID}}", "rbd")
	d.plugin = id
	return d, err
}

func (d *docker) run(args ...string) (string, error) {
	return tool.Run(2*limit, "docker", append([]string{"-H", "unix://" + filepath.Join(d.dir, "docker.sock")}, args...)...)
}

func (d *docker) create(volume string, options ...string) error {
	args := []string{"volume", "create", "-d", "rbd"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	_, err := d.run(append(args, volume)...)
	return err
}

func (d *docker) remove(volume string) error {
	_, err := d.run("volume", "rm", volume)
	return err
}

// data puts a volume into a container, where its scripts run.
func data(volume string) []string {
	return []string{"--network=none", "-w", "/data", "--mount", "type=volume,volume-driver=rbd,src=" + volume + ",dst=/data", "busybox:test"}
}

func (d *docker) once(volume, script string) (string, error) {
	return d.run(append(append([]string{"run", "--rm"}, data(volume)...), "sh", "-ec", script)...)
}

func (d *docker) hold(volume string) (user, error) {
	id, err := d.run(append(append([]string{"run", "-d", "--stop-signal=KILL"}, data(volume)...), "sleep", "1d")...)
	return container{d.run, id}, err
}

func (d *docker) socket() string { return filepath.Join("/run/docker/plugins", d.plugin, "rbd.sock") }

func (d *docker) processes() ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	for _, proc := range all {
		cmdline, err1 := os.ReadFile(filepath.Join(proc, "cmdline"))
		cgroup, err2 := os.ReadFile(filepath.Join(proc, "cgroup"))
		if err1 != nil || err2 != nil || strings.TrimRight(string(cmdline), "\x00") != "/usr/bin/docker-volume-rbd" ||
			!strings.Contains(string(cgroup), d.plugin) {
			continue // it has ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			return nil, err
		}
		return inside(pid)
	}
	return nil, errors.Join(err, fmt.Errorf("no process of plugin %s", d.plugin))
}

func (d *docker) stop() error {
	_, err := tool.Run(limit, filepath.Join("..", "engine.sh"), "stop", d.dir)
	return err
}

func (d *docker) log() string {
	text, _ := os.ReadFile(filepath.Join(d.dir, "dockerd.log"))
	return string(text)
}

// container is one that docker or podman runs.
type container struct {
	by func(args ...string) (string, error)
	id string
}

func (c container) run(script string) (string, error) { return c.by("exec", c.id, "sh", "-ec", script) }

func (c container) end() error {
	_, err := c.by("rm", "-f", c.id)
	return err
}

// podman asks the plugin that runs as a program of the host.
type podman struct {
	*program
	conf string
}

func startPodman(dir, plugin, ceph string) (*podman, error) {
	program, err := startProgram(dir, "one", plugin, ceph)
	p := &podman{program: program, conf: filepath.Join(dir, "containers.conf")}
	if err != nil {
		return p, err
	}
	// What the plugin mounts is to be seen where it says that it is.
	const shared = "/var/lib/docker-volume-rbd"
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return p, err
	}
	if _, err := tool.Run(10*time.Second, "mount", "--bind", filepath.Join(p.root, shared), shared); err != nil {
		return p, err
	}
	conf := fmt.Sprintf("[engine]\nvolume_plugin_timeout = 120\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\n[engine.volume_plugins]\nrbd = %q\n", p.socket())
	const etc = "/etc/containers" // it is in memory, see test/suite.sh
	err = errors.Join(os.MkdirAll(etc, 0o755), os.WriteFile(p.conf, []byte(conf), 0o600),
		os.WriteFile(filepath.Join(etc, "policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600))
	if err != nil {
		return p, err
	}
	image := filepath.Join(dir, "image")
	_, err = tool.Run(limit, "sh", "-ec", `mkdir -p "$1/bin" "$1/tmp" && cp "$(command -v busybox)" "$1/bin/" && for a in $(busybox --list); do
		[ "$a" = busybox ] || ln -s busybox "$1/bin/$a"; done; tar -C "$1" -cf "$1.tar" .`, "sh", image)
	if err != nil {
		return p, err
	}
	_, err = p.run("import", "-c", "ENV PATH=/bin", image+".tar", "busybox:test")
	return p, err
}

func (p *podman) run(args ...string) (string, error) {
	global := []string{"CONTAINERS_CONF=" + p.conf, "podman", "--root", filepath.Join(p.dir, "storage"), "--runroot", filepath.Join(p.dir, "runroot"),
		"--storage-driver", "vfs"}
	return tool.Run(2*limit, "env", append(global, args...)...)
}

func (p *podman) create(volume string, options ...string) error {
	args := []string{"volume", "create", "--driver", "rbd"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	_, err := p.run(append(args, volume)...)
	return err
}

func (p *podman) remove(volume string) error {
	_, err := p.run("volume", "rm", volume)
	return err
}

func (p *podman) once(volume, script string) (string, error) {
	return p.run("run", "--rm", "--network=none", "-w", "/data", "-v", volume+":/data", "localhost/busybox:test", "sh", "-ec", script)
}

func (p *podman) hold(volume string) (user, error) {
	id, err := p.run("run", "-d", "--stop-signal=KILL", "--network=none", "-w", "/data", "-v", volume+":/data", "localhost/busybox:test", "sleep", "1d")
	return container{p.run, id}, err
}
