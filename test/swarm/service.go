package swarm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

// Service is a volume and those who write in it: the task of a service of the
// same name, or containers started by hand. Its checker knows what was
// acknowledged.
type Service struct {
	*workload.Checker
	Name string

	bed      *Bed
	listener *workload.Listener
	mounts   []string // options of docker run and docker service create
}

// Volume names a volume that nobody uses yet; options begin with a comma.
func (b *Bed) Volume(name, options string) (*Service, error) {
	s := &Service{Checker: workload.NewChecker(), Name: name, bed: b}
	socket := filepath.Join(b.dir, "report", name)
	s.mounts = []string{
		"--mount", "type=volume,volume-driver=rbd,src=" + name + ",dst=/data,volume-label=team=red" + options,
		"--mount", "type=bind,src=" + filepath.Dir(socket) + ",dst=/report",
	}
	var err error
	s.listener, err = workload.Listen(socket, func(r workload.Report) { _ = s.Add(r) })
	return s, err
}

func (s *Service) command() []string {
	return []string{writer, "-report", "/report/" + s.Name, "-interval", "50ms"}
}

// Service starts a service on a volume of its own and waits for its first
// record. Options are those of docker service create.
func (b *Bed) Service(name, volumeOptions string, options ...string) (*Service, error) {
	s, err := b.Volume(name, volumeOptions)
	if err != nil {
		return s, err
	}
	args := append([]string{
		"service", "create", "--detach", "--name", name, "--network", "host", "--no-resolve-image",
		"--restart-delay", "500ms", "--env", "NODE={{.Node.Hostname}}",
	}, slices.Concat(s.mounts, options, s.command())...)
	if _, err := b.Docker(args...); err != nil {
		return s, err
	}
	_, err = s.Writes(time.Minute, "")
	return s, err
}

// RunOn starts a container by hand, which takes as long as the volume's mount.
func (s *Service) RunOn(n *Node) error {
	args := append([]string{"run", "-d", "--name", s.Name, "--network", "host", "--env", "NODE=" + n.Name}, slices.Concat(s.mounts, s.command())...)
	// An engine that crashed a moment ago may unmount what the new plugin has
	// shared. The plugin then says so, and starts afresh within 15 s.
	for range 8 {
		_, err := n.docker(3*time.Minute, args...)
		if err == nil || !strings.Contains(err.Error(), "does not reach the host") {
			return err
		}
		if _, err := n.docker(time.Minute, "rm", "-f", s.Name); err != nil {
			return err
		}
		time.Sleep(5 * time.Second)
	}
	return errors.New("the mounts of " + n.Name + " do not reach the host, and its plugin does not help itself")
}

// Writes waits for a new record, on a node if one is named, and tells when it came.
func (s *Service) Writes(limit time.Duration, node string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*limit) // which is that of an idle machine
	defer cancel()
	after, _ := s.Acked()
	r, err := s.WaitAck(ctx, after, node)
	if err != nil {
		tasks, _ := s.bed.Docker("service", "ps", "--no-trunc", "--format", "{{.Node}} {{.DesiredState}} {{.CurrentState}} {{.Error}}", s.Name)
		err = fmt.Errorf("service %s: %w; its tasks:\n%s", s.Name, err, tasks)
	}
	return r.At, err
}

// Node is where the writer of now runs.
func (s *Service) Node() *Node {
	_, name := s.Current()
	return s.bed.node(name)
}

// Other is a node where it does not run.
func (s *Service) Other() *Node {
	for _, n := range s.bed.Nodes {
		if n != s.Node() {
			return n
		}
	}
	return nil
}

func (b *Bed) node(name string) *Node {
	for _, n := range b.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Verdict is what the checker has found by now.
func (s *Service) Verdict() error {
	if v := s.Violations(); len(v) > 0 {
		return fmt.Errorf("service %s: %w", s.Name, errors.Join(v...))
	}
	return nil
}

// End removes the service and all containers, waits until no node has the volume, and looks at
// what is on the image. All nodes must be up.
func (s *Service) End() error {
	if out, err := s.bed.Docker("service", "ls", "-q", "--filter", "name="+s.Name); err == nil && out != "" {
		if _, err := s.bed.Docker("service", "rm", s.Name); err != nil {
			return err
		}
	}
	for _, n := range s.bed.Nodes {
		_, _ = n.Docker("rm", "-f", s.Name)
	}
	began := time.Now()
	err := tool.Within(3*time.Minute, func() error {
		for _, n := range s.bed.Nodes { // one that waits for the volume would have it after all
			out, err := n.Docker("ps", "-aq", "--filter", "label=com.docker.swarm.service.name="+s.Name)
			if err == nil && out != "" {
				if time.Since(began) > 20*time.Second { // an agent that lost power may have forgotten its own
					_, err = n.Docker(append([]string{"rm", "-f"}, strings.Fields(out)...)...)
				}
				err = errors.Join(fmt.Errorf("%s still has tasks of %s: %q", n.Name, s.Name, out), err)
			}
			if err != nil {
				return err
			}
		}
		guards, err := s.bed.Nodes[0].Guards()
		for _, g := range guards {
			if g.Volume == s.Name {
				err = fmt.Errorf("volume %s: node %s still has it", s.Name, g.Node)
			}
		}
		return err
	})
	if err == nil {
		err = s.Inspect(false)
	}
	s.listener.Close()
	return errors.Join(err, s.Verdict())
}

// Inspect copies the image and looks at the copy: the filesystem must be clean,
// after a replay of its journal if it was left in use, and all that was
// acknowledged must be there.
func (s *Service) Inspect(left bool) (err error) {
	file := filepath.Join(s.bed.dir, s.Name+".img")
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	if _, err := s.bed.Ceph("rbd", "export", "--no-progress", "rbd/"+s.Name, file); err != nil {
		return err
	}
	dir := filepath.Join(s.bed.dir, s.Name+".mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	entries, err := workload.Inspect(file, dir, left)
	if err != nil {
		return fmt.Errorf("volume %s: %w", s.Name, err)
	}
	return s.Verify(entries)
}

// fenced are the clients on Ceph's blocklist, and until when.
func (b *Bed) fenced() (map[string]time.Time, error) {
	out, err := b.Ceph("ceph", "osd", "blocklist", "ls")
	addrs := map[string]time.Time{}
	for line := range strings.Lines(out) {
		addr, until, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.Contains(addr, "/") {
			continue
		}
		at, parseErr := time.Parse("2006-01-02T15:04:05.000000-0700", until)
		err = errors.Join(err, parseErr)
		addrs[addr] = at
	}
	return addrs, err
}
