package rbd

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
)

// diagnose tells why a call may have had no answer: what the monitors say of the
// cluster's health, or that they say nothing either. One question at a time is
// under way, as each may hang for rados_mon_op_timeout; who comes meanwhile gets
// the last answer.
func (p *Pool) diagnose(c *client) (verdict string) {
	last, _ := p.verdict.Load().(string)
	last = cmp.Or(last, "see ceph -s")
	if !p.diagnosing.CompareAndSwap(false, true) {
		return last
	}
	if !p.use(c) {
		p.diagnosing.Store(false)
		return last
	}
	defer func() { p.verdict.Store(verdict) }()
	said := make(chan string, 1)
	go func() {
		defer p.diagnosing.Store(false)
		defer p.put(c)
		out, err := monCommand(c.conn, map[string]any{"prefix": "health", "format": "json"})
		if err != nil {
			said <- "the monitors do not tell the cluster's health: " + err.Error()
			return
		}
		said <- "the monitors say " + health(out)
	}()
	select {
	case text := <-said:
		return text
	case <-time.After(time.Second):
		return "no monitor answers (" + monHost(c.conn) + "); is this node's network up, is ceph running?"
	}
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

// monHost is where ceph.conf says that the monitors are.
func monHost(conn *rados.Conn) string {
	hosts, err := conn.GetConfigOption("mon_host")
	if err != nil || hosts == "" {
		return "ceph.conf names none"
	}
	return "mon_host = " + hosts
}
