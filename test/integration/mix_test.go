package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// work is what the mix consists of: how often each kind is taken, of all.
var work = map[string]int{
	"create": 10, "copy": 8, "mount": 24, "write": 24, "unmount": 12, "second": 4, "steal": 1, "get": 10, "list": 3,
	"snapshot": 5, "unsnapshot": 3, "rollback": 3, "remove": 6, "restore": 5,
	"mv": 3, "trash": 2, "empty": 3, "resize": 2, "hurt": 4, "late": 2, "halfmade": 2, "bad": 2,
}

// kinds are the operations by name.
func (m *mix) kinds() map[string]func(*rand.Rand, *slot) {
	return map[string]func(*rand.Rand, *slot){
		"create": m.create, "copy": m.copy, "mount": m.mount, "write": m.write, "unmount": m.unmount, "second": m.second, "steal": m.steal,
		"get": m.get, "list": m.list, "snapshot": m.snapshot, "unsnapshot": m.unsnapshot, "rollback": m.rollback, "remove": m.remove,
		"restore": m.restore, "mv": m.move, "trash": m.discardBy, "empty": m.empty, "resize": m.resize, "hurt": m.hurt, "late": m.late, "halfmade": m.halfMade, "bad": m.bad,
	}
}

// plan is what a mix is to be.
type plan struct {
	seed  uint64
	long  time.Duration
	kill  time.Duration  // between two kills of a plugin, about; 0 = never
	work  map[string]int // "" = as ever
	env   []string       // which mends the plugins are without
	names int
	waits time.Duration // for what must come about, and what then is a fault
}

// Some of everything that people, Docker, a swarm and bad luck do with volumes, at the
// same time, and each time in another order: MIX=60m SEED=7 makes it long and says
// which. What has been acknowledged stays true, and no healthy volume suffers from
// what is wrong with another one.
func TestMix(t *testing.T) {
	p := plan{seed: 1, long: 8 * time.Second, kill: 3 * time.Second, work: work, names: 12, waits: 4 * time.Minute}
	if text := os.Getenv("MIX"); text != "" {
		var err error
		if p.long, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		p.seed, p.kill = rand.Uint64N(1_000_000), 5*time.Second
	}
	if text := os.Getenv("SEED"); text != "" {
		var err error
		if p.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	testbed.WatchTimeout(t, 10)
	m := newMix(t, p)
	m.run(p)
	if !m.failed() {
		m.check(rand.New(rand.NewPCG(p.seed, 0)))
	}
	for _, fault := range m.faults {
		t.Errorf("seed %d, %v: %s", p.seed, p.long, fault)
	}
}

func newMix(t *testing.T, p plan) *mix {
	t.Helper()
	cfg := testbed.Namespace(t)
	cfg.User = "client.docker" // who has no cap on any other pool
	m := &mix{
		history: history{began: time.Now(), found: make(chan struct{})},
		t:       t, cfg: cfg, waits: p.waits, admin: newAdmin(t, cfg), count: map[string]*atomic.Int64{},
	}
	m.death.every = p.kill
	t.Cleanup(func() {
		if path := os.Getenv("MIXLOG"); path != "" { // else there is some of it with a fault
			if err := m.save(path); err != nil {
				t.Error(err)
			}
		}
		for _, s := range m.slots {
			if s.user != nil {
				s.user.file.close()
			}
		}
	})
	m.nodes = []*mixNode{
		newMixNode(t, cfg, "one", 3*time.Hour, p.env), newMixNode(t, cfg, "two", 3*time.Hour, p.env),
		newMixNode(t, cfg, "three", 20*time.Second, p.env),
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		m.watch(stop)
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	for i := range p.names {
		m.slots = append(m.slots, &slot{name: fmt.Sprintf("v%d", i)})
	}
	for kind := range p.work {
		m.count[kind] = new(atomic.Int64)
	}
	if p.work["bad"] > 0 { // a clone of what this user may not read
		pool := testbed.Pool(t)
		testbed.RBD(t, "create", "--size", "8M", pool+"/base")
		testbed.RBD(t, "snap", "create", "--no-progress", pool+"/base@s")
		testbed.RBD(t, "clone", "--rbd-default-clone-format", "2", pool+"/base@s", cfg.Pool+"/"+cfg.Namespace+"/bad")
	}
	return m
}

// workers is how many do something at the same time.
const workers = 5

// run works until the time is up, or a fault is found.
func (m *mix) run(p plan) {
	m.t.Logf("seed %d, %v, %d workers on %d volumes and %d nodes, a kill each %v", p.seed, p.long, workers, len(m.slots), len(m.nodes), p.kill)
	var deck []string
	for _, kind := range slices.Sorted(maps.Keys(p.work)) {
		deck = append(deck, slices.Repeat([]string{kind}, p.work[kind])...)
	}
	kinds, end := m.kinds(), time.Now().Add(p.long)
	m.began = time.Now()
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(p.seed, uint64(worker+1)))
			for time.Now().Before(end) && !m.failed() {
				kind, s := deck[r.IntN(len(deck))], m.slots[r.IntN(len(m.slots))]
				if !s.TryLock() {
					time.Sleep(time.Millisecond)
					continue
				}
				kinds[kind](r, s)
				s.Unlock()
				m.count[kind].Add(1)
				if n := m.node(r); r.IntN(100) == 0 {
					m.killSoon(r, n)
				}
			}
		})
	}
	wg.Wait()
	var done []string
	for _, kind := range slices.Sorted(maps.Keys(m.count)) {
		done = append(done, fmt.Sprintf("%s %d", kind, m.count[kind].Load()))
	}
	m.t.Logf("%v: %s; %d kills, %d with image servers; %d writes", time.Since(m.began).Round(time.Second), strings.Join(done, ", "),
		m.death.kills, m.death.whole, m.last.Load())
}

// bad asks for what cannot be described, which is nobody else's trouble.
func (m *mix) bad(r *rand.Rand, _ *slot) {
	n := m.node(r)
	if _, err := n.call("VolumeDriver.Get", map[string]any{"Name": "bad"}); err != nil && strings.Contains(err.Error(), "not found") {
		m.fault(&slot{name: "bad"}, "get on %s: %v", n.name, err)
	}
}
