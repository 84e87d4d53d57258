package swarm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// The node is drained, the service is made to restart, or bound to a node: it
// goes with its volume, nobody is fenced, and little of the time is the plugins'.
func TestPlannedMove(t *testing.T) {
	s := service(t)
	before, err := bed.fenced()
	must(t, err)
	for _, move := range []struct {
		what string
		args func(from, to *Node) []string
	}{
		{"drain", func(from, _ *Node) []string { return []string{"node", "update", "--availability", "drain", from.Name} }},
		{"forced update", func(_, _ *Node) []string { return []string{"service", "update", "--detach", "--force", s.Name} }},
		{"constraint", func(_, to *Node) []string {
			return []string{"service", "update", "--detach", "--constraint-add", "node.hostname==" + to.Name, s.Name}
		}},
	} {
		from, to, logs, writers := s.Node(), s.Other(), logSizes(), len(s.Writers())
		old := running(t, from, s.Name)
		_, err := bed.Docker(move.args(from, to)...)
		must(t, err)
		must(t, tool.Within(time.Minute, func() error {
			if len(s.Writers()) == writers {
				return errors.New("nothing moves")
			}
			return nil
		}))
		_, err = s.Writes(time.Minute, "")
		must(t, err)
		to = s.Node()
		ended, started := state(t, from, old, "FinishedAt"), state(t, to, running(t, to, s.Name), "StartedAt")
		all := requests(t, from, logs[from.Name], s.Name)
		if to != from {
			all = append(all, requests(t, to, logs[to.Name], s.Name)...)
		}
		t.Logf("figure: planned move, %s, %s to %s: last exit to new start %v, of that in requests to the plugins %v",
			move.what, from.Name, to.Name, started.Sub(ended).Round(time.Millisecond), busy(all, ended, started).Round(time.Millisecond))
		for _, n := range bed.Nodes {
			_, err := bed.Docker("node", "update", "--availability", "active", n.Name)
			must(t, err)
		}
	}
	after, err := bed.fenced()
	must(t, err)
	for addr := range after {
		if _, was := before[addr]; !was {
			t.Errorf("a planned move has fenced %s", addr)
		}
	}
}

// running is the id of the service's container on a node.
func running(t *testing.T, n *Node, service string) string {
	t.Helper()
	out, err := n.Docker("ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+service)
	must(t, err)
	ids := strings.Fields(out)
	if len(ids) != 1 {
		t.Fatalf("containers of %s on %s: %v", service, n.Name, ids)
	}
	return ids[0]
}

// state is a time of a container's life.
func state(t *testing.T, n *Node, container, what string) time.Time {
	t.Helper()
	out, err := n.Docker("inspect", "-f", "{{.State."+what+"}}", container)
	must(t, err)
	at, err := time.Parse(time.RFC3339Nano, out)
	must(t, err)
	return at
}

// Another node wants the volume while a task has it: start-first, and a stray
// docker run. It is told who has it, and the task notices nothing.
func TestTwoWantIt(t *testing.T) {
	t.Parallel() // it waits for most of two minutes
	s := service(t, "--update-order", "start-first")
	other, holder := s.Other(), s.Node()
	type result struct {
		err  error
		took time.Duration
	}
	stray := make(chan result, 1)
	go func() {
		from := time.Now()
		_, err := other.docker(3*time.Minute, "run", "--rm", "--network=none", "--mount",
			"type=volume,volume-driver=rbd,src="+s.Name+",dst=/data", writer, "-file", "/data/stray")
		stray <- result{err, time.Since(from)}
	}()
	writers := len(s.Writers())
	_, err := bed.Docker("service", "update", "--detach", "--force", s.Name)
	must(t, err)
	r := <-stray
	if r.err == nil {
		t.Fatal("a stray container got the volume")
	}
	guards, err := other.Guards()
	must(t, err)
	for _, part := range append([]string{"in use by node " + holder.Name, "since "}, addrs(guards, s.Name)...) {
		if !strings.Contains(r.err.Error(), part) {
			t.Errorf("%q does not say %q", r.err, part)
		}
	}
	t.Logf("the refusal took %v", r.took.Round(time.Second)) // in time for Docker, or it would have words of its own
	if len(s.Writers()) != writers || s.Node() != holder {
		t.Error("the writer was replaced")
	}
	_, err = s.Writes(10*time.Second, holder.Name)
	must(t, err)
	if all := s.Errors(); len(all) > 0 {
		t.Errorf("the first noticed: %v", all)
	}
}

func addrs(guards []Guard, volume string) []string {
	for _, g := range guards {
		if g.Volume == volume {
			return g.Addrs
		}
	}
	return nil
}
