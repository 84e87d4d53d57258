package swarm

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	seed   = flag.Uint64("seed", 0, "of the random faults; 0 takes one from the clock")
	faults = flag.Int("faults", 6, "how many random faults")
)

// fault is something that goes wrong with a node, and what ends it.
type fault struct {
	name  string
	lasts bool // for a while, which may be shorter or longer than the watch timeout
	begin func(n *Node) error
	end   func(n *Node) error
}

func nothing(*Node) error { return nil }

var kinds = []fault{
	{"cut off from everything", true, func(n *Node) error { return n.Cut("ceph", "swarm") }, (*Node).Heal},
	{"cut off from ceph", true, func(n *Node) error { return n.Cut("ceph") }, (*Node).Heal},
	{"cut off from the swarm", true, func(n *Node) error { return n.Cut("swarm") }, (*Node).Heal},
	{"paused", true, func(n *Node) error { n.Pause(); return nil }, func(n *Node) error { n.Resume(); return nil }},
	{"power cut", true, (*Node).Kill, (*Node).Boot},
	{"reboot", false, (*Node).Reboot, nothing},
	{"plugin crash", false, (*Node).CrashPlugin, nothing},
	{"engine crash", false, (*Node).CrashEngine, (*Node).StartEngine},
	{"engine crash for a while", true, (*Node).CrashEngine, (*Node).StartEngine},
	{"power cut, and an operator fences it", true, killAndFence, (*Node).Boot},
	{"cut off, and an operator fences it", true, cutAndFence, (*Node).Heal},
	{"drained", true, func(n *Node) error { return n.availability("drain") }, func(n *Node) error { return n.availability("active") }},
}

func (n *Node) availability(a string) error {
	_, err := n.bed.Docker("node", "update", "--availability", a, n.Name)
	return err
}

func killAndFence(n *Node) error { return errors.Join(n.Kill(), n.fenceByAnother()) }
func cutAndFence(n *Node) error  { return errors.Join(n.Cut("ceph", "swarm"), n.fenceByAnother()) }

// fenceByAnother asks the plugin of a node that is well.
func (n *Node) fenceByAnother() error {
	for _, other := range n.bed.Nodes {
		if other == n || !other.reachable() || other.off("ceph") {
			continue
		}
		taken, err := other.Fence(n.Name)
		switch {
		case err == nil && len(taken) > 0, err != nil && strings.Contains(err.Error(), "not found"):
			return nil
		case err == nil:
			return fmt.Errorf("%s says nothing of what it fenced", other.Name)
		case other.reachable() && !other.off("ceph"):
			return err
		}
	}
	return nil // nobody is there to do it
}

// Random faults, one or two at a time, while three services write. After each of
// them everything heals, every service must write again, and nothing that was
// acknowledged may be lost.
func TestRandomFaults(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d: go test ./test/swarm -run TestRandomFaults -seed %d -faults %d", *seed, *seed, *faults)
	watchTimeout(t, 10)
	random := rand.New(rand.NewPCG(*seed, 0))
	var services []*Service
	for _, name := range []string{"red", "green", "blue"} {
		s, err := bed.Service("chaos-"+name, ",volume-opt=size=2G")
		must(t, err)
		services = append(services, s)
	}
	logs := logSizes()
	injected, slowest := 0, time.Duration(0)
	count := map[string]int{}
	began := time.Now()
	for injected < *faults && !t.Failed() {
		nodes := slices.Clone(bed.Nodes)
		random.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		var wg sync.WaitGroup
		for _, n := range nodes[:1+random.IntN(4)/3] {
			k := kinds[random.IntN(len(kinds))]
			lasts, late := time.Duration(0), time.Duration(random.IntN(3000))*time.Millisecond
			if k.lasts {
				lasts = time.Duration(1000+random.IntN(19000)) * time.Millisecond
			}
			injected++
			count[k.name]++
			wg.Go(func() {
				time.Sleep(late)
				t.Logf("%6.1fs %s: %s %v", time.Since(began).Seconds(), n.Name, k.name, lasts)
				err := k.begin(n)
				time.Sleep(lasts)
				if err = errors.Join(err, k.end(n)); err != nil {
					t.Errorf("%s, %s: %v", n.Name, k.name, err)
				}
			})
		}
		wg.Wait()
		healed := time.Now()
		for _, s := range services {
			if _, err := s.Writes(3*time.Minute, ""); err != nil {
				t.Error(err)
			}
			if err := s.Verdict(); err != nil {
				t.Error(err)
			}
		}
		slowest = max(slowest, time.Since(healed))
	}
	for _, n := range bed.Nodes {
		n.Resume()
		must(t, n.Boot(), n.Heal())
	}
	acked := 0
	for _, s := range services {
		_, acks := s.Acked()
		acked += acks
		if err := s.End(); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		showLogs(t, logs)
	}
	t.Logf("figure: seed %d: %d faults in %v, %d records acknowledged, slowest recovery after a fault ended %v: %s",
		*seed, injected, time.Since(began).Round(time.Second), acked, slowest.Round(100*time.Millisecond), fmt.Sprint(count))
	for _, s := range services {
		_, err := bed.Docker("volume", "rm", "-f", s.Name)
		must(t, err)
	}
}
