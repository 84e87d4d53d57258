package swarm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

// Service is a service of one task with a volume of its own, in which the task
// writes; both have the same name. The checker knows what was acknowledged.
type Service struct {
	*workload.Checker
	Name string

	bed      *Bed
	listener *workload.Listener
}

// Service starts a service and waits for its first record. Options are those of
// docker service create.
func (b *Bed) Service(name, volumeOptions string, options ...string) (*Service, error) {
	s := &Service{Checker: workload.NewChecker(), Name: name, bed: b}
	socket := filepath.Join(b.dir, "report", name)
	var err error
	if s.listener, err = workload.Listen(socket, func(r workload.Report) { _ = s.Add(r) }); err != nil {
		return nil, err
	}
	args := append([]string{
		"service", "create", "--detach", "--name", name, "--network", "host", "--no-resolve-image",
		"--restart-delay", "500ms", "--env", "NODE={{.Node.Hostname}}",
		"--mount", "type=volume,volume-driver=rbd,src=" + name + ",dst=/data" + volumeOptions,
		"--mount", "type=bind,src=" + filepath.Dir(socket) + ",dst=/report",
	}, options...)
	if _, err := b.Docker(append(args, writer, "-report", "/report/"+name, "-interval", "50ms")...); err != nil {
		return s, err
	}
	_, err = s.Writes(time.Minute, "")
	return s, err
}

// Writes waits for a new record, on a node if one is named, and tells when it came.
func (s *Service) Writes(limit time.Duration, node string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
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

// End removes the service, waits until no node has the volume, and looks at
// what is on the image.
func (s *Service) End() error {
	if _, err := s.bed.Docker("service", "rm", s.Name); err != nil {
		return err
	}
	err := within(2*time.Minute, func() error {
		for _, n := range s.bed.Nodes {
			if n.reachable() {
				guards, err := n.Guards()
				for _, g := range guards {
					if g.Volume == s.Name {
						err = fmt.Errorf("volume %s: node %s still has it", s.Name, g.Node)
					}
				}
				return err
			}
		}
		return errors.New("no node is there to be asked")
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
	mounted := func(do func() error) error {
		if _, err := run(time.Minute, "mount", "-o", "loop,noatime", file, dir); err != nil {
			return err
		}
		err := do()
		_, umount := run(time.Minute, "umount", dir)
		return errors.Join(err, umount)
	}
	if left { // the kernel replays the journal
		if err := mounted(func() error { return nil }); err != nil {
			return err
		}
	}
	if out, err := run(5*time.Minute, "e2fsck", "-f", "-n", file); err != nil {
		return fmt.Errorf("the filesystem of %s is damaged: %w\n%s", s.Name, err, out)
	}
	return mounted(func() error {
		log, err := os.Open(filepath.Join(dir, "log"))
		if err != nil {
			return err
		}
		defer func() { _ = log.Close() }()
		info, err := log.Stat()
		if err != nil {
			return err
		}
		entries, tail, err := workload.Scan(log, info.Size())
		if err != nil {
			return fmt.Errorf("log of %s: %w", s.Name, err)
		}
		if tail != "" && !left {
			return fmt.Errorf("log of %s: its end is %s", s.Name, tail)
		}
		return s.Verify(entries)
	})
}

// fenced lists the clients on Ceph's blocklist.
func (b *Bed) fenced() ([]string, error) {
	out, err := b.Ceph("ceph", "osd", "blocklist", "ls")
	var addrs []string
	for line := range strings.Lines(out) {
		if addr, _, ok := strings.Cut(line, " "); ok && strings.Contains(addr, "/") {
			addrs = append(addrs, addr)
		}
	}
	return addrs, err
}
