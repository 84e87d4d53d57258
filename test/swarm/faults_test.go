package swarm

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// The watch timeout of Ceph in these tests is 10 s; in one it is the default.
func watchTimeout(t *testing.T, seconds int) {
	t.Helper()
	_, err := bed.Ceph("ceph", "config", "set", "osd", "osd_client_watch_timeout", fmt.Sprint(seconds))
	must(t, err)
}

// A node loses power for good: another has the volume as soon as Ceph has missed it.
func TestNodeDeath(t *testing.T) {
	for _, seconds := range []int{10, 30} {
		t.Run(fmt.Sprintf("%ds", seconds), func(t *testing.T) {
			watchTimeout(t, seconds)
			s, err := bed.Volume(volumeName(t), ",volume-opt=size=256M")
			must(t, err)
			ends(t, s)
			dead, next := bed.Nodes[0], bed.Nodes[1]
			must(t, s.RunOn(dead))
			_, err = s.Writes(time.Minute, dead.Name)
			must(t, err)
			clients := holder(t, next, s.Name)
			from := time.Now()
			must(t, dead.Kill())
			logs := logSizes()
			started := make(chan error, 1)
			go func() { started <- s.RunOn(next) }()
			expired := unwatched(t, s.Name, clients)
			at, err := s.Writes(2*time.Minute, next.Name)
			must(t, err, <-started)
			mounted := last(t, next, logs[next.Name], "mount", s.Name).to
			t.Logf("figure: node death, watch timeout %d s: the watch expires %v after the power cut, the volume is mounted %v later, the first record comes %v later",
				seconds, since(from, expired), since(expired, mounted), since(expired, at))
			barred(t, clients)
			must(t, dead.Boot())
			_, err = s.Writes(10*time.Second, next.Name)
			must(t, err)
		})
	}
}

// The same, and swarm notices by itself.
func TestServiceOutlivesItsNode(t *testing.T) {
	watchTimeout(t, 10)
	s := service(t)
	dead := s.Node()
	clients := holder(t, dead, s.Name)
	from := time.Now()
	must(t, dead.Kill())
	takenOver(t, s, dead, clients)
	t.Logf("figure: a service's node dies: the first records elsewhere come after %v, most of it swarm's", since(from, time.Now()))
	must(t, dead.Boot())
	_, err := s.Writes(10*time.Second, "")
	must(t, err)
}

func since(from, to time.Time) time.Duration { return to.Sub(from).Round(time.Millisecond) }

// holder are the clients that the guard names.
func holder(t *testing.T, n *Node, volume string) []string {
	t.Helper()
	guards, err := n.Guards()
	must(t, err)
	found := addrs(guards, volume)
	if len(found) == 0 {
		t.Fatalf("nobody has %s: %v", volume, guards)
	}
	return found
}

// unwatched waits until Ceph has missed all the clients, or somebody has fenced them.
func unwatched(t *testing.T, volume string, clients []string) time.Time {
	t.Helper()
	must(t, tool.Within(time.Minute, func() error {
		out, err := bed.Ceph("rbd", "status", "rbd/"+volume)
		for _, c := range clients {
			if strings.Contains(out, c) {
				return fmt.Errorf("%s still watches %s", c, volume)
			}
		}
		return err
	}))
	return time.Now()
}

// barred wants clients on the blocklist, for years.
func barred(t *testing.T, clients []string) {
	t.Helper()
	list, err := bed.fenced()
	must(t, err)
	for _, c := range clients {
		if time.Until(list[c]) < 4*365*24*time.Hour {
			t.Errorf("%s is fenced until %v", c, list[c])
		}
	}
}

// The node is cut off from all, or from Ceph alone, and lives on: another takes
// over, and what comes back has lost the volume and cleans up.
func TestCutOff(t *testing.T) {
	for _, networks := range []string{"ceph swarm", "ceph"} {
		t.Run(strings.ReplaceAll(networks, " ", "-"), func(t *testing.T) {
			watchTimeout(t, 10)
			s := service(t)
			lost, logs := s.Node(), logSizes()
			clients := holder(t, lost, s.Name)
			usual := answers(t, lost, []string{s.Name})
			must(t, lost.Cut(strings.Fields(networks)...))
			time.Sleep(5 * time.Second) // the plugin has found out, or finds out now
			figures(t, "cut off from "+networks, answers(t, lost, []string{s.Name}), usual)
			if networks == "ceph" { // swarm sees nothing wrong: somebody has to move it
				_, err := bed.Docker("node", "update", "--availability", "drain", lost.Name)
				must(t, err)
			}
			takenOver(t, s, lost, clients)
			must(t, lost.Heal())
			cleansUp(t, s, lost, logs[lost.Name], clients)
		})
	}
}

// takenOver waits until another node writes; the clients of the one before must
// be fenced then.
func takenOver(t *testing.T, s *Service, from *Node, clients []string) {
	t.Helper()
	must(t, tool.Within(90*time.Second, func() error {
		if s.Node() == from {
			return fmt.Errorf("%s still has it", from.Name)
		}
		return nil
	}))
	_, err := s.Writes(time.Minute, "")
	must(t, err)
	barred(t, clients)
}

// cleansUp waits until a returned node has taken away what it lost, and says so.
// The writer elsewhere notices nothing.
func cleansUp(t *testing.T, s *Service, n *Node, log int64, clients []string) {
	t.Helper()
	waitFor(t, n, log, time.Minute, "dropping the mapping", "volume="+s.Name)
	nothingStale(t, n, s.Name, clients)
	_, err := s.Writes(10*time.Second, "")
	must(t, err)
}

// Ceph and the task go on where the swarm has lost the node: the volume stays,
// and the new task says whose it is.
func TestCutOffFromTheSwarmOnly(t *testing.T) {
	watchTimeout(t, 10)
	s := service(t)
	lost := s.Node()
	must(t, lost.Cut("swarm"))
	from := time.Now()
	must(t, tool.Within(90*time.Second, func() error {
		out, err := bed.Docker("service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}}", s.Name)
		if err == nil && (out == "" || strings.Contains(out, lost.Name)) {
			err = fmt.Errorf("no new task: %q", out)
		}
		return err
	}))
	logs, waiting := logSizes(), map[string]bool{}
	must(t, tool.Within(time.Minute, func() error {
		for _, n := range bed.Nodes {
			for _, line := range n.said(logs[n.Name]) {
				if n != lost && strings.Contains(line, "waiting: in use by node "+lost.Name) && strings.Contains(line, "volume="+s.Name) {
					waiting[n.Name] = true
				}
			}
		}
		if len(waiting) == 0 {
			return fmt.Errorf("no node waits for %s", lost.Name)
		}
		return nil
	}))
	time.Sleep(max(0, 25*time.Second-time.Since(from))) // longer than the watch timeout
	if s.Node() != lost {
		t.Fatal("a live holder has lost its volume")
	}
	_, err := s.Writes(5*time.Second, lost.Name)
	must(t, err)
	writers := len(s.Writers())
	must(t, lost.Heal())
	anew(t, s, writers)
}

// anew waits until there is a new writer, and it writes.
func anew(t *testing.T, s *Service, before int) {
	t.Helper()
	must(t, tool.Within(2*time.Minute, func() error {
		if len(s.Writers()) == before {
			return fmt.Errorf("no new task of %s writes", s.Name)
		}
		return nil
	}))
	_, err := s.Writes(time.Minute, "")
	must(t, err)
}

// A node stands still, wakes up when another has the volume, and must not write.
func TestPause(t *testing.T) {
	watchTimeout(t, 10)
	s := service(t)
	lost, logs := s.Node(), logSizes()
	clients := holder(t, lost, s.Name)
	lost.Pause()
	takenOver(t, s, lost, clients)
	lost.Resume()
	cleansUp(t, s, lost, logs[lost.Name], clients)
}

// A pause or a cut that is shorter than the watch timeout: nobody notices.
func TestShortTrouble(t *testing.T) {
	watchTimeout(t, 30)
	s := service(t)
	n, clients := s.Node(), holder(t, s.Node(), s.Name)
	must(t, n.Cut("ceph"))
	time.Sleep(4 * time.Second)
	must(t, n.Heal())
	_, err := s.Writes(30*time.Second, n.Name)
	must(t, err)
	n.Pause()
	time.Sleep(2 * time.Second) // swarm gives up a node after some 6 s
	n.Resume()
	_, err = s.Writes(30*time.Second, n.Name)
	must(t, err)
	if now := holder(t, n, s.Name); strings.Join(now, " ") != strings.Join(clients, " ") {
		t.Errorf("held by %v, was %v", now, clients)
	}
}

// A cut that is longer than the watch timeout, and nobody else wants the volume:
// the I/O that waited goes on, under the same guard.
func TestABlip(t *testing.T) {
	watchTimeout(t, 10)
	s := service(t)
	n, clients := s.Node(), holder(t, s.Node(), s.Name)
	must(t, n.Cut("ceph"))
	time.Sleep(16 * time.Second)
	must(t, n.Heal())
	_, err := s.Writes(30*time.Second, n.Name)
	must(t, err)
	time.Sleep(20 * time.Second) // the plugin has looked at it
	_, err = s.Writes(5*time.Second, n.Name)
	must(t, err)
	if now := holder(t, n, s.Name); strings.Join(now, " ") != strings.Join(clients, " ") {
		t.Errorf("held by %v, was %v", now, clients)
	}
	if all := s.Errors(); len(all) > 0 {
		t.Errorf("the writer has seen errors: %v", all)
	}
}

// The same node after a power cut: nobody waits for its own dead client, and the
// new one is not fenced with it.
func TestReboot(t *testing.T) {
	watchTimeout(t, 30)
	s := service(t)
	n := s.Node()
	_, err := bed.Docker("service", "update", "--detach", "--constraint-add", "node.hostname=="+n.Name, s.Name)
	must(t, err)
	n, logs := settled(t, s), logSizes()
	old := holder(t, n, s.Name)
	must(t, n.Kill())
	must(t, s.Inspect(true))
	must(t, n.Boot())
	_, err = s.Writes(2*time.Minute, n.Name)
	must(t, err)
	barred(t, old)
	list, err := bed.fenced()
	must(t, err)
	for _, c := range holder(t, n, s.Name) {
		if until, fenced := list[c]; fenced {
			t.Errorf("the node's new client %s is fenced until %v", c, until)
		}
	}
	longest := time.Duration(0)
	for _, r := range requests(t, n, logs[n.Name], s.Name) {
		if r.op == "mount" {
			longest = max(longest, r.to.Sub(r.from))
		}
	}
	t.Logf("figure: reboot of the same node: the longest mount took %v", longest.Round(time.Millisecond))
}

// settled waits until the service's last update is done and its writer writes.
func settled(t *testing.T, s *Service) *Node {
	t.Helper()
	time.Sleep(5 * time.Second)
	_, err := s.Writes(time.Minute, "")
	must(t, err)
	return s.Node()
}

// An operator knows that a node is dead and does not wait for Ceph to miss it.
func TestOperatorsFence(t *testing.T) {
	watchTimeout(t, 30)
	s := service(t)
	dead := s.Node()
	clients := holder(t, dead, s.Name)
	must(t, dead.Kill())
	must(t, tool.Within(time.Minute, func() error { // another has the task, and waits
		out, err := bed.Docker("service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}", s.Name)
		if err == nil && !strings.Contains(out, "Starting") {
			err = fmt.Errorf("no task is starting: %q", out)
		}
		return err
	}))
	asked := s.Other()
	if taken, err := asked.Fence(asked.Name); err == nil || !strings.Contains(err.Error(), "this very node") {
		t.Errorf("fencing itself: %v, %v", taken, err)
	}
	from := time.Now()
	taken, err := asked.Fence(dead.Name)
	must(t, err)
	took := time.Since(from)
	if len(addrs(taken, s.Name)) == 0 {
		t.Fatalf("taken: %v", taken)
	}
	at, err := s.Writes(time.Minute, "")
	must(t, err)
	barred(t, clients)
	t.Logf("figure: operator's fence: answered after %v, first record elsewhere after %v", took.Round(time.Millisecond), at.Sub(from).Round(time.Millisecond))
}

// The plugin dies alone; its containers lose the volume with the userspace
// mapper's data path. The engine dies alone; nobody notices until it is back.
func TestCrashes(t *testing.T) {
	watchTimeout(t, 10)
	s := service(t)
	n := s.Node()
	must(t, n.CrashPlugin())
	must(t, tool.Within(time.Minute, func() error {
		if len(s.Errors()) == 0 {
			return fmt.Errorf("the writer has not lost its volume")
		}
		return nil
	}))
	_, err := s.Writes(time.Minute, "")
	must(t, err)

	n = s.Node()
	must(t, n.CrashEngine())
	_, err = s.Writes(20*time.Second, n.Name)
	must(t, err)
	writers := len(s.Writers())
	must(t, n.StartEngine()) // which ends the containers of before
	anew(t, s, writers)
}
