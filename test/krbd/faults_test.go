package krbd

import (
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// watchTimeout is Ceph's for these tests, instead of 30 s.
const watchTimeout = 10

// moved waits until the volume of a dead or lost node is mounted on another.
func (w *writers) moved(t *testing.T, from, to *node, since time.Time) (ended chan error) {
	t.Helper()
	ended = w.write(t, to)
	took := time.Since(since)
	t.Logf("figure: %s lost at once, its volume is written on %s after %.1fs (watch timeout %d s)", from.Name, to.Name, took.Seconds(), watchTimeout)
	return ended
}

func TestAPlannedMove(t *testing.T) {
	plugin(t)
	w := watched(t)
	there := func() {
		for _, n := range []*node{one, two, one} {
			ended := w.write(t, n)
			w.wait(t, n, 20)
			w.stopped(t, n, ended)
			must(t, n.clean(w.volume, time.Second))
		}
	}
	there()
	if one.Arch != two.Arch { // elsewhere other tests have the other mapper
		must(t, one.userspace())
		there()
	}
}

func TestANodeLosesItsPower(t *testing.T) {
	plugin(t)
	testbed.WatchTimeout(t, watchTimeout)
	w := watched(t)
	lost := []*node{two}
	if one.Arch != two.Arch { // what one architecture has left, the other takes
		lost = append(lost, one)
	}
	for _, from := range lost {
		to := one
		if from == one {
			to = two
		}
		_ = w.write(t, from)
		w.wait(t, from, 20)
		must(t, from.Kill())
		off := time.Now()
		w.stopped(t, to, w.moved(t, from, to, off))
		must(t, from.boot(), from.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
		w.stopped(t, from, w.write(t, from))
	}
}

// A reboot of the very node that has the volume waits for nothing, above all not for
// the end of its own watch: that would outlast any mount.
func TestANodeReboots(t *testing.T) {
	plugin(t)
	testbed.WatchTimeout(t, 600)
	w := watched(t)
	_ = w.write(t, two)
	must(t, two.Kill(), two.boot(), two.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	before := time.Now()
	ended := w.write(t, two)
	t.Logf("figure: after the reboot of the same node mount and first records took %.1fs (watch timeout 600 s)", time.Since(before).Seconds())
	w.stopped(t, two, ended)
}

func TestANodeIsPaused(t *testing.T) {
	plugin(t)
	testbed.WatchTimeout(t, watchTimeout)
	w := watched(t)
	lost := w.write(t, two)
	must(t, two.Pause())
	ended := w.moved(t, two, one, time.Now())
	must(t, two.Resume())
	w.failed(t, two, lost, 60*time.Second)
	must(t, two.clean(w.volume, 40*time.Second))
	w.wait(t, one, 20)
	w.stopped(t, one, ended)
	w.stopped(t, two, w.write(t, two)) // it may come back
}

func TestANodeIsCutOff(t *testing.T) {
	plugin(t)
	testbed.WatchTimeout(t, watchTimeout)
	w := watched(t)
	lost := w.write(t, two)
	must(t, two.Cut())
	ended := w.moved(t, two, one, time.Now())
	must(t, two.Heal())
	w.failed(t, two, lost, 60*time.Second)
	must(t, two.clean(w.volume, 40*time.Second))
	if log := two.log(); !strings.Contains(log, "dropping the mapping /dev/rbd") {
		t.Error("the plugin does not report that it took the mapping away")
	}
	w.wait(t, one, 20)
	w.stopped(t, one, ended)
	w.stopped(t, two, w.write(t, two))
}

// A network that is away for longer than the watch timeout, while nobody else
// wants the volume: the I/O waits and goes on.
func TestABlip(t *testing.T) {
	plugin(t)
	testbed.WatchTimeout(t, watchTimeout)
	w := watched(t)
	ended := w.write(t, two)
	must(t, two.Cut())
	time.Sleep((watchTimeout + 4) * time.Second)
	must(t, two.Heal())
	w.wait(t, two, 20)
	two.sleep(16 * time.Second) // the plugin compares every 15 s
	w.wait(t, two, 20)
	w.stopped(t, two, ended)
}
