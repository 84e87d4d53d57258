package swarm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// The networks of the bed are inside namespaces that it makes, and lead nowhere.
// Ceph has one of its own, so that a node can lose the one and keep the other.
const (
	monitor  = "10.11.12.1"
	cephNet  = "10.11.12."
	swarmNet = "10.11.13."
)

const (
	pluginName = "rbd:latest"
	writer     = "writer:test"
)

// Bed is the swarm and its cluster.
type Bed struct {
	Nodes []*Node
	dir   string // short: the sockets' paths must fit
	name  string // of its namespaces
}

// Start starts a cluster and a swarm of three nodes with the plugin of a
// directory (config.json and rootfs). What Close does is up to the caller even
// after an error. SABOTAGE is for the plugin of a test build.
func Start(dir, plugin, sabotage string) (b *Bed, err error) {
	b = &Bed{dir: dir, name: fmt.Sprintf("rbd%d%s", os.Getpid(), sabotage)}
	if err := os.MkdirAll(filepath.Join(dir, "report"), 0o755); err != nil {
		return b, err
	}
	for i := 1; i <= 3; i++ {
		b.Nodes = append(b.Nodes, &Node{bed: b, Name: fmt.Sprintf("node%d", i), number: i})
	}
	// For test/run.sh, which cleans up if this process dies.
	names := []string{b.name}
	for _, n := range b.Nodes {
		names = append(names, n.netns())
	}
	if err := os.WriteFile(filepath.Join(dir, "netns"), []byte(strings.Join(names, "\n")+"\n"), 0o644); err != nil {
		return b, err
	}
	if err := b.network(); err != nil {
		return b, err
	}
	var cluster, image error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, cluster = tool.Run(2*time.Minute, "ip", "netns", "exec", b.name, "env", "CLUSTER_ADDR="+monitor, "../cluster.sh", "start", b.cluster(), "--bluestore")
	})
	wg.Go(func() { image = b.buildWriter() })
	nodes := make([]error, len(b.Nodes))
	for i, n := range b.Nodes {
		wg.Go(func() { nodes[i] = n.start() })
	}
	wg.Wait()
	if err := errors.Join(append(nodes, cluster, image)...); err != nil {
		return b, err
	}
	for i, n := range b.Nodes {
		wg.Go(func() { nodes[i] = n.install(plugin, sabotage) })
	}
	wg.Wait()
	if err := errors.Join(nodes...); err != nil {
		return b, err
	}
	return b, b.form()
}

func (b *Bed) cluster() string { return filepath.Join(b.dir, "c") }

// PowerCut is one of the whole rack: every node, and Ceph.
func (b *Bed) PowerCut() error {
	errs := make([]error, len(b.Nodes)+1)
	var wg sync.WaitGroup
	for i, n := range b.Nodes {
		wg.Go(func() { errs[i] = n.Kill() })
	}
	wg.Go(func() { errs[len(b.Nodes)] = b.cephd("kill") })
	wg.Wait()
	return errors.Join(errs...)
}

// cephd kills or boots the daemons of the cluster.
func (b *Bed) cephd(command string) error {
	_, err := tool.Run(time.Minute, "ip", "netns", "exec", b.name, "../cluster.sh", command, b.cluster())
	return err
}

// network makes a namespace that is the switch, with a bridge for each network,
// and one for each node.
func (b *Bed) network() error {
	lines := []string{
		"netns add " + b.name, "-n " + b.name + " link set lo up",
		"-n " + b.name + " link add ceph type bridge", "-n " + b.name + " link add swarm type bridge",
		"-n " + b.name + " addr add " + monitor + "/24 dev ceph",
		"-n " + b.name + " link set ceph up", "-n " + b.name + " link set swarm up",
	}
	for _, n := range b.Nodes {
		lines = append(lines, "netns add "+n.netns(), "-n "+n.netns()+" link set lo up")
		for bridge, net := range map[string]string{"ceph": cephNet, "swarm": swarmNet} {
			lines = append(lines,
				fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s", bridge, n.netns(), n.port(bridge), b.name),
				fmt.Sprintf("-n %s link set %s master %s up", b.name, n.port(bridge), bridge),
				fmt.Sprintf("-n %s addr add %s%d/24 dev %s", n.netns(), net, 10+n.number, bridge),
				fmt.Sprintf("-n %s link set %s up", n.netns(), bridge))
		}
	}
	for _, line := range lines {
		if _, err := tool.Run(10*time.Second, "ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// buildWriter builds the workload as the root of an image.
func (b *Bed) buildWriter() error {
	root := filepath.Join(b.dir, "writer")
	_, err := tool.Run(5*time.Minute, "env", "CGO_ENABLED=0", "go", "build", "-o", filepath.Join(root, "writer"), "../workload/writer")
	if err == nil {
		_, err = tool.Run(time.Minute, "tar", "-C", root, "-cf", filepath.Join(b.dir, "writer.tar"), ".")
	}
	return err
}

// form makes the nodes a swarm of managers: any one of them may go. A lost node
// is noticed after some 6 s instead of 20, Ceph's watch timeout counts then.
func (b *Bed) form() error {
	first := b.Nodes[0]
	addr := func(n *Node) string { return fmt.Sprintf("%s%d", swarmNet, 10+n.number) }
	if _, err := first.Docker("swarm", "init", "--advertise-addr", addr(first), "--dispatcher-heartbeat", "2s", "--task-history-limit", "3"); err != nil {
		return err
	}
	token, err := first.Docker("swarm", "join-token", "-q", "manager")
	if err != nil {
		return err
	}
	for _, n := range b.Nodes[1:] {
		if _, err := n.Docker("swarm", "join", "--token", token, "--advertise-addr", addr(n), addr(first)+":2377"); err != nil {
			return err
		}
	}
	return nil
}

// Close ends everything and removes it.
func (b *Bed) Close() error {
	var errs []error
	for _, n := range b.Nodes {
		_ = n.Heal()
		n.Resume()
		errs = append(errs, n.stop())
	}
	if _, err := os.Stat(b.cluster()); err == nil {
		_, err := tool.Run(time.Minute, "../cluster.sh", "stop", b.cluster())
		errs = append(errs, err)
	}
	for _, n := range b.Nodes {
		_, err := tool.Run(10*time.Second, "ip", "netns", "del", n.netns())
		errs = append(errs, err)
	}
	_, err := tool.Run(10*time.Second, "ip", "netns", "del", b.name)
	_, rm := tool.Run(time.Minute, "rm", "-rf", "--one-file-system", b.dir)
	return errors.Join(append(errs, err, rm)...)
}

// Ceph runs one of Ceph's tools on the cluster.
func (b *Bed) Ceph(program string, args ...string) (string, error) {
	args = append([]string{"--net=/run/netns/" + b.name, program, "-c", filepath.Join(b.cluster(), "ceph.conf")}, args...)
	return tool.Run(time.Minute, "nsenter", args...)
}

// Docker runs the docker client on a manager that answers.
func (b *Bed) Docker(args ...string) (out string, err error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(500 * time.Millisecond) {
		for _, n := range b.Nodes {
			if n.reachable() {
				if out, err = n.docker(20*time.Second, args...); err == nil {
					return out, nil
				}
			}
		}
		if time.Now().After(end) {
			return out, fmt.Errorf("no manager does it: %w", err)
		}
	}
}
