package rbd

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// diagnosis is a question to the monitors. One at a time is under way, as it may
// hang for rados_mon_op_timeout; who comes meanwhile waits for the same answer.
type diagnosis struct {
	until time.Time // when they have had long enough
	done  chan struct{}
	said  string
}

// diagnose tells why a call may have had no answer: what the monitors say of the
// cluster's health, or that they say nothing either.
func (p *Pool) diagnose(c *client) string {
	d := p.askMonitors(c)
	if d == nil {
		return "see ceph -s"
	}
	select {
	case <-d.done:
		return d.said
	case <-time.After(time.Until(d.until)):
		return p.noAnswer(c)
	}
}

// askMonitors returns the question that is under way, or asks it; nil if it cannot.
func (p *Pool) askMonitors(c *client) *diagnosis {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked != nil || c.retired && c.users == 0 { // it may have been shut down
		return p.asked
	}
	c.users++
	d := &diagnosis{until: time.Now().Add(time.Second), done: make(chan struct{})}
	p.asked = d
	go func() {
		defer p.put(c)
		out, err := monCommand(c.conn, map[string]any{"prefix": "health", "format": "json"})
		if d.said = "the monitors say " + health(out); err != nil {
			d.said = "the monitors do not tell the cluster's health: " + err.Error()
			p.unanswered(c)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = nil
		close(d.done)
	}()
	return d
}

// health reads the monitors' answer: a status, and a line for each thing that is wrong.
func health(answer []byte) string {
	var h struct {
		Status string
		Checks map[string]struct{ Summary struct{ Message string } }
	}
	if err := json.Unmarshal(answer, &h); err != nil {
		return string(answer)
	}
	var lines []string
	for _, c := range h.Checks {
		lines = append(lines, c.Summary.Message)
	}
	slices.Sort(lines)
	return strings.TrimSuffix(h.Status+": "+strings.Join(lines, "; "), ": ")
}
