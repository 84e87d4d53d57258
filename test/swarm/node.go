package swarm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// Node is a machine of the swarm: network, mount, pid and uts namespaces, with
// an engine in them. Its disk is a directory.
type Node struct {
	Name   string
	bed    *Bed
	number int
	power  *exec.Cmd // the process that waits for the node's first one; nil = off
	engine *exec.Cmd // the one that waits for dockerd
	pidns  string
	init   int
	plugin string // the plugin's id
	usr    string // what it has as /usr; "" = the machine's own

	mu     sync.Mutex
	down   map[string]bool // networks it is off
	paused bool
}

func (n *Node) netns() string             { return fmt.Sprintf("%sn%d", n.bed.name, n.number) }
func (n *Node) port(bridge string) string { return fmt.Sprintf("n%d-%s", n.number, bridge) }
func (n *Node) dir(elem ...string) string {
	return filepath.Join(append([]string{n.bed.dir, fmt.Sprintf("n%d", n.number)}, elem...)...)
}

// boot starts the node's first process, with a /run and a /proc of its own.
func (n *Node) boot() error {
	if err := os.MkdirAll(n.dir(), 0o755); err != nil {
		return err
	}
	for _, gone := range []string{"exec", "docker.sock", "dockerd.pid"} { // as a real /run is gone after a boot
		if err := os.RemoveAll(n.dir(gone)); err != nil {
			return err
		}
	}
	usr := ""
	if n.usr != "" {
		usr = "mount --bind " + n.usr + " /usr && "
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+n.netns(), "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork",
		"--mount-proc", "--propagation=private", "sh", "-c",
		"hostname "+n.Name+" && mount -t tmpfs tmpfs /run && "+usr+"exec docker-init -- cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Should this process die, cat ends, and so does the node.
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.switched(cmd)
	return tool.Within(10*time.Second, func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err != nil {
			return err
		}
		if n.init, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return err
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.init))
		if err != nil || !strings.HasPrefix(string(args), "docker-init") {
			return fmt.Errorf("the first process of %s is %q: %w", n.Name, args, err)
		}
		n.pidns, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.init))
		return err
	})
}

// start boots the node and starts its engine.
func (n *Node) start() error {
	if err := n.boot(); err != nil {
		return err
	}
	return n.StartEngine()
}

// StartEngine starts dockerd and waits until it answers.
func (n *Node) StartEngine() error {
	if err := os.RemoveAll(n.dir("dockerd.pid")); err != nil {
		return err
	}
	log, err := os.OpenFile(n.dir("dockerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(n.init), "-m", "-u", "-i", "-n", "-p", "dockerd",
		"--data-root", n.dir("data"), "--exec-root", n.dir("exec"), "-H", "unix://"+n.dir("docker.sock"), "-p", n.dir("dockerd.pid"),
		"--bridge=none", "--iptables=false")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.engine = cmd
	go func() { _ = cmd.Wait() }()
	return tool.Within(90*time.Second, func() error {
		_, err := n.docker(5*time.Second, "version")
		return err
	})
}

// install creates the plugin and enables it.
func (n *Node) install(dir, sabotage string) error {
	env := []string{"NODE_NAME=" + n.Name, "RBD_MAPPER=fuse", "LOG_LEVEL=debug", "ceph.source=" + filepath.Join(n.bed.cluster(), "etc-ceph")}
	if sabotage != "" {
		env = append(env, "SABOTAGE="+sabotage)
	}
	for _, args := range [][]string{
		{"import", "-c", `ENTRYPOINT ["/writer"]`, filepath.Join(n.bed.dir, "writer.tar"), writer},
		{"plugin", "create", pluginName, dir},
		append([]string{"plugin", "set", pluginName}, env...),
		{"plugin", "enable", "--timeout", "0", pluginName},
	} {
		if _, err := n.docker(2*time.Minute, args...); err != nil {
			return err
		}
	}
	var err error
	n.plugin, err = n.Docker("plugin", "inspect", "-f", "{{.ID}}", pluginName)
	return err
}

// Docker runs the docker client on the node's engine.
func (n *Node) Docker(args ...string) (string, error) { return n.docker(time.Minute, args...) }

func (n *Node) docker(limit time.Duration, args ...string) (string, error) {
	return tool.Run(limit, "docker", append([]string{"-H", "unix://" + n.dir("docker.sock")}, args...)...)
}

// reachable tells whether its engine can be asked and is part of the swarm.
func (n *Node) reachable() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.power != nil && !n.paused && !n.down["swarm"]
}

func (n *Node) off(network string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down[network]
}

type process struct {
	pid  int
	args []string
}

// processes are those of the node, whatever container they are in.
func (n *Node) processes() (all []process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || ns != n.pidns {
			continue
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, numErr := strconv.Atoi(filepath.Base(dir))
		if err == nil && numErr == nil {
			all = append(all, process{pid, strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")})
		}
	}
	return all
}

func (n *Node) send(s syscall.Signal, what string, is func(args []string) bool) error {
	all := n.processes()
	i := slices.IndexFunc(all, func(p process) bool { return is(p.args) })
	if i < 0 {
		return fmt.Errorf("%s has no %s to be sent %v", n.Name, what, s)
	}
	return syscall.Kill(all[i].pid, s)
}

// isPlugin: without arguments; with one it is an image server.
func isPlugin(args []string) bool { return len(args) == 1 && args[0] == "/usr/bin/docker-volume-rbd" }

// CrashPlugin kills the plugin. Docker starts it again.
func (n *Node) CrashPlugin() error { return n.send(syscall.SIGKILL, "plugin", isPlugin) }

// FreezePlugin stops the plugin but not its image servers, until Resume.
func (n *Node) FreezePlugin() error { return n.send(syscall.SIGSTOP, "plugin", isPlugin) }

// CrashEngine kills dockerd, and nothing else. StartEngine starts it again.
func (n *Node) CrashEngine() error {
	return n.send(syscall.SIGKILL, "engine", func(args []string) bool { return args[0] == "dockerd" })
}

// UpgradeEngine stops dockerd in an orderly way and starts the one of another
// /usr, as an upgrade of the package does.
func (n *Node) UpgradeEngine(usr string) error {
	isEngine := func(args []string) bool { return args[0] == "dockerd" }
	if err := n.send(syscall.SIGTERM, "engine", isEngine); err != nil {
		return err
	}
	err := tool.Within(time.Minute, func() error {
		if slices.ContainsFunc(n.processes(), func(p process) bool { return isEngine(p.args) }) {
			return fmt.Errorf("the engine of %s does not end", n.Name)
		}
		return nil
	})
	if err == nil {
		n.usr = usr
		_, err = tool.Run(10*time.Second, "nsenter", "-t", strconv.Itoa(n.init), "-m", "mount", "--bind", usr, "/usr")
	}
	return errors.Join(err, n.StartEngine())
}

// Cut takes the node off the networks named, "ceph" or "swarm".
func (n *Node) Cut(networks ...string) error { return n.link("down", networks) }

// Heal puts it back on both.
func (n *Node) Heal() error { return n.link("up", []string{"ceph", "swarm"}) }

func (n *Node) link(state string, networks []string) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down == nil {
		n.down = map[string]bool{}
	}
	for _, network := range networks {
		_, one := tool.Run(10*time.Second, "ip", "-n", n.bed.name, "link", "set", n.port(network), state)
		err = errors.Join(err, one)
		n.down[network] = state == "down"
	}
	return err
}

// Pause stops every process of the node, Resume lets them go on.
func (n *Node) Pause() {
	n.mu.Lock()
	n.paused = true
	n.mu.Unlock()
	n.signal(syscall.SIGSTOP)
}

// Resume ends a Pause.
func (n *Node) Resume() {
	n.signal(syscall.SIGCONT)
	n.wake()
	n.mu.Lock()
	n.paused = false
	n.mu.Unlock()
}

// wake lets nsenter go on: it stops when what it waits for is stopped, and then
// nobody would notice the end of that.
func (n *Node) wake() {
	if n.engine != nil {
		_ = n.engine.Process.Signal(syscall.SIGCONT)
	}
}

// switched sets what has the power on, nil for off.
func (n *Node) switched(power *exec.Cmd) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.power = power
}

func (n *Node) signal(s syscall.Signal) {
	if n.power == nil {
		return
	}
	for range 2 { // some may just have been started
		for _, p := range n.processes() {
			_ = syscall.Kill(p.pid, s)
		}
	}
}

// Kill is a power cut: the node is off the networks, and all its processes die
// at once with its first one.
func (n *Node) Kill() error {
	if n.power == nil {
		return nil
	}
	err := n.Cut("ceph", "swarm")
	if err := syscall.Kill(n.init, syscall.SIGKILL); err != nil {
		return err
	}
	n.wake()
	_ = n.power.Wait()
	n.switched(nil)
	return err
}

// Boot puts the power back on.
func (n *Node) Boot() error {
	if n.power != nil {
		return nil
	}
	return errors.Join(n.Heal(), n.start())
}

// Reboot is a power cut and a boot right after it.
func (n *Node) Reboot() error { return errors.Join(n.Kill(), n.Boot()) }

// stop ends the node and removes what the kernel has of it.
func (n *Node) stop() error {
	err := n.Kill()
	for _, pattern := range []string{"data/containers/*", "data/plugins/*"} {
		ids, _ := filepath.Glob(n.dir(pattern))
		for _, id := range ids {
			if id = filepath.Base(id); len(id) == 64 {
				_, _ = tool.Run(10*time.Second, "find", "/sys/fs/cgroup", "-depth", "-type", "d", "-name", "*"+id+"*", "-exec", "rmdir", "{}", "+")
			}
		}
	}
	return err
}
