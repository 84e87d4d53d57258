package swarm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// The power of the whole rack goes. Two nodes are back long before Ceph is, the
// third never. Nobody does anything, and every service goes on with all that it
// had synced.
func TestPowerCutOfTheRack(t *testing.T) {
	watchTimeout(t, 30)
	var services []*Service
	for _, name := range []string{"rack-red", "rack-green", "rack-blue"} {
		s, err := bed.Service(name, ",volume-opt=size=256M")
		must(t, err)
		ends(t, s)
		services = append(services, s)
	}
	gone, before := services[0].Node(), map[*Service]string{}
	back := slices.DeleteFunc(slices.Clone(bed.Nodes), func(n *Node) bool { return n == gone })
	clients := holder(t, back[0], services[0].Name)
	for _, s := range services {
		before[s] = s.Node().Name
	}
	known, usual := map[*Node][]string{}, map[*Node]map[string][]time.Duration{}
	for _, n := range back {
		for _, s := range services {
			if s.Node() == n { // only there the volume has its labels
				known[n] = append(known[n], s.Name)
			}
		}
		usual[n] = answers(t, n, known[n])
	}

	must(t, bed.PowerCut())
	var wg sync.WaitGroup
	for _, n := range back {
		wg.Go(func() {
			began := time.Now()
			if err := n.Boot(); err != nil {
				t.Error(err)
			}
			t.Logf("figure: power cut of the rack: the engine of %s, a manager of the swarm, answers %v after its boot, without Ceph", n.Name, since(began, time.Now()))
		})
	}
	wg.Wait()
	must(t, tool.Within(time.Minute, func() error { // swarm has tried
		out, err := bed.Docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", services[0].Name)
		if err == nil && !strings.Contains(out, "mon_host = ") {
			err = fmt.Errorf("no task says that Ceph is away: %s", out)
		}
		return err
	}))
	for _, n := range back {
		figures(t, "power cut of the rack, on "+n.Name, answers(t, n, known[n]), usual[n])
	}

	must(t, bed.cephd("boot"))
	began := time.Now()
	for _, s := range services {
		at, err := s.Writes(3*time.Minute, "")
		must(t, err)
		t.Logf("figure: power cut of the rack: %s, before on %s, writes on %s %v after Ceph's boot", s.Name, before[s], s.Node().Name, since(began, at))
	}
	barred(t, clients)
	must(t, gone.Boot())
	nothingStale(t, gone, services[0].Name, clients)
}

// answers asks the node's engine, three times, what does not need Ceph.
func answers(t *testing.T, n *Node, volumes []string) map[string][]time.Duration {
	t.Helper()
	all := map[string][]time.Duration{}
	ask := func(what string, args ...string) string {
		began := time.Now()
		out, err := n.Docker(args...)
		must(t, err)
		all[what] = append(all[what], time.Since(began))
		return out
	}
	for range 3 {
		ask("docker ps", "ps")
		listed := strings.Fields(ask("docker volume ls", "volume", "ls", "-q", "-f", "label=team=red"))
		for _, v := range volumes {
			if !slices.Contains(listed, v) {
				t.Errorf("docker volume ls on %s does not list %s with its label: %v", n.Name, v, listed)
			}
			ask("docker volume inspect", "volume", "inspect", v)
		}
	}
	return all
}

// figures logs what was measured beside what is usual. One of three may have been
// the one that finds out, or the machine busy.
func figures(t *testing.T, when string, took, usual map[string][]time.Duration) {
	t.Helper()
	for _, what := range slices.Sorted(maps.Keys(took)) {
		if len(usual[what]) == 0 {
			continue
		}
		most := slices.Max(usual[what])
		t.Logf("figure: %s: %s takes at most %d ms, otherwise %d ms", when, what, slices.Max(took[what]).Milliseconds(), most.Milliseconds())
		if slices.Min(took[what]) > 2*most+time.Duration(tool.Slowness()*float64(2*time.Second)) {
			t.Errorf("%s took %v", what, took[what])
		}
	}
}
