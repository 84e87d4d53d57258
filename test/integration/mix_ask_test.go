package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// mix is random work on a cluster, by a few nodes and an admin at the same time.
type mix struct {
	history
	t     *testing.T
	cfg   rbd.Config
	admin *admin
	nodes []*mixNode
	slots []*slot
	death executioner
	last  atomic.Int64 // number written
	// For what must come about in the end. Ceph misses a client after a while, plugins
	// start, and the machine may be busy with other things.
	waits time.Duration
	count map[string]*atomic.Int64

	trashMu sync.Mutex
	trash   []*image
}

// Docker's own limits, and then it asks again.
var limits = map[string]time.Duration{"Create": 2 * time.Minute, "Mount": 2 * time.Minute, "Rollback": 2 * time.Minute}

// slow is what is told of when it has come about.
const slow = 20 * time.Second

// verdict is what an error means.
type verdict int

const (
	again verdict = iota
	refused
	done
)

// errRefused is a refusal that may be.
var errRefused = errors.New("refused")

// errFault is one that may not; it has been noted.
var errFault = errors.New("a fault was found")

// cut tells whether an earlier try was not answered, so that it may have come about.
type judge func(text string, cut bool) verdict

// ask sends a request, as dockerd and swarm do: again and again, until there is an
// answer that can be. Now and then the plugin is killed while it is at it.
func (m *mix) ask(r *rand.Rand, s *slot, n *mixNode, method string, request map[string]any, is judge) (answer map[string]any, err error) {
	path := method
	if !strings.Contains(method, ".") {
		path = "VolumeDriver." + method
	}
	_, verb, _ := strings.Cut(path, ".")
	limit := limits[verb]
	if limit == 0 {
		limit = time.Minute
	}
	patient := verb != "Mount" || s.image == nil || s.image.healthy()
	if !patient { // what may be refused, and be told so only after as long as Docker waits
		limit = 3 * time.Second
	}
	if slices.Contains([]string{"Create", "Mount", "Unmount", "Remove", "Rollback"}, verb) {
		m.killSoon(r, n)
	}
	began, isCut, tries, first := time.Now(), false, 0, ""
	for {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		answer, err = n.callWithin(ctx, path, request)
		cancel()
		tries++
		if err == nil {
			took := time.Since(began).Round(time.Millisecond)
			m.note(s, "%s on %s: ok after %v, %d tries", path, n.name, took, tries)
			if took > slow {
				m.t.Logf("%8.3fs %s %s on %s: %v, %d tries, at first: %s", time.Since(m.began).Seconds(), s.name, path, n.name, took, tries, first)
			}
			return answer, nil
		}
		if tries == 1 {
			first = err.Error()
		}
		isCut = isCut || answer == nil
		if answer == nil && path == "Snapshot.Create" {
			s.image.cut = append(s.image.cut, request["snapshot"].(string))
		}
		what := again
		if answer != nil {
			what = is(err.Error(), isCut)
		} else if !patient && tries > 1 {
			what = refused
		}
		if tries == 1 || what != again {
			m.note(s, "%s on %s, try %d: %v", path, n.name, tries, err)
		}
		switch {
		case what == done:
			return answer, nil
		case what == refused:
			return answer, errRefused
		case m.failed(): // nobody needs to know any more
			return answer, errFault
		case time.Since(began) > m.waits:
			m.fault(s, "%s on %s: %d tries in %v: %v", path, n.name, tries, time.Since(began).Round(time.Second), err)
			return answer, errFault
		}
		isCut = true // an error that is no refusal may be one of the time, too
		time.Sleep(time.Duration(100+r.IntN(200)) * time.Millisecond)
	}
}

// unless tells that errors of a healthy volume are no refusals.
func (s *slot) unless(texts ...string) judge {
	return func(text string, _ bool) verdict {
		if s.image != nil && !s.image.healthy() || s.taken() {
			return refused
		}
		for _, t := range texts {
			if strings.Contains(text, t) {
				return refused
			}
		}
		return again
	}
}

// killSoon kills a plugin a moment later, if it is time for that.
func (m *mix) killSoon(r *rand.Rand, n *mixNode) {
	kill, servers := m.death.may(r)
	if !kill {
		return
	}
	wait := time.Duration(r.Int64N(int64(150 * time.Millisecond)))
	go func() {
		time.Sleep(wait)
		m.kill(n, servers)
	}()
}

func (m *mix) kill(n *mixNode, servers bool) {
	with := "its image servers live on"
	if servers {
		with = "and its image servers"
	}
	m.note(nil, "kill -9 of the plugin of %s, %s", n.name, with)
	if err := n.kill(servers); err != nil {
		m.fault(nil, "node %s does not come back: %v", n.name, err)
	}
}

func (m *mix) node(r *rand.Rand) *mixNode { return m.nodes[r.IntN(len(m.nodes))] }

// other is a node that is not this one.
func (m *mix) other(r *rand.Rand, n *mixNode) *mixNode {
	i := slices.Index(m.nodes, n)
	return m.nodes[(i+1+r.IntN(len(m.nodes)-1))%len(m.nodes)]
}
