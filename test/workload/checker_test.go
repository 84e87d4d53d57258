package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// A log in short is "a3b2": three records of writer a, two of b. A history is
// starts, "a:" and the log found, and acks, "a3". The node of a is node-a.
func parse(history string) (reports []Report) {
	for _, word := range strings.Fields(history) {
		name := word[:1]
		r := Report{Kind: Ack, Writer: "node-" + name + "/" + name, Node: "node-" + name}
		if log, ok := strings.CutPrefix(word[1:], ":"); ok {
			r.Kind, r.Runs = Start, Runs(parseLog(log))
			r.Seq = last(r.Runs)
		} else if _, err := fmt.Sscan(word[1:], &r.Seq); err != nil {
			panic(word)
		}
		reports = append(reports, r)
	}
	return reports
}

func parseLog(log string) (entries []Entry) {
	for ; log != ""; log = log[2:] {
		for range log[1] - '0' {
			entries = append(entries, Entry{uint64(len(entries)) + 1, "node-" + log[:1] + "/" + log[:1]})
		}
	}
	return entries
}

func TestLegitimate(t *testing.T) {
	for name, c := range map[string]struct{ history, log string }{
		"nothing":                          {"", ""},
		"one writer":                       {"a: a1 a2 a3", "a3"},
		"planned move":                     {"a: a1 a2 b:a2 b3 b4", "a2b2"},
		"take-over, last record unacked":   {"a: a1 a2 b:a3 b4", "a3b1"},
		"take-over, torn tail unacked":     {"a: a1 a2 b:a2 b3", "a2b1"}, // a's third is no record
		"paused writer reports late":       {"a: a1 a2 b:a3 b4 a3 b5", "a3b2"},
		"late by two take-overs":           {"a: a1 b:a2 b3 c:a2b1 a2 c4", "a2b1c1"},
		"reboot":                           {"a: a1 a2 c:a2 c3 c4 d:a2c2 d5", "a2c2d1"},
		"a start and no more":              {"a: a1 b:a1 c:a1 c2", "a1c1"},
		"unacked end":                      {"a: a1", "a2"},
		"a log from before":                {"b:a2 b3 c:a2b1 c4", "a2b1c1"},
		"paused before its start's report": {"a: a1 c:a1 c2 b:a1 c3 d:a1c2 d4", "a1c2d1"},
	} {
		t.Run(name, func(t *testing.T) {
			c1 := NewChecker()
			for _, r := range parse(c.history) {
				if err := c1.Add(r); err != nil {
					t.Error(err)
				}
			}
			if err := c1.Verify(parseLog(c.log)); err != nil {
				t.Error(err)
			}
			if v := c1.Violations(); v != nil {
				t.Error(v)
			}
		})
	}
}

func TestViolations(t *testing.T) {
	const a, b = "node-a/a (node node-a)", "node-b/b (node node-b)"
	for name, c := range map[string]struct{ history, log, want string }{
		"lost, seen at a start": {"a: a1 a2 a3 b:a2", "",
			"lost acknowledged record 3 of " + a + ": " + b + " finds only 2"},
		"all lost":    {"a: a1 a2 b:", "", "lost acknowledged record 1 of " + a + ": " + b + " finds only 0"},
		"lost at end": {"a: a1 a2 b:a2 b3", "a2", "lost acknowledged record 3 of " + b + ": the final log finds only 2"},
		"lost, of one before": {"a: a1 a2 b:a2 c:a1", "",
			"lost acknowledged record 2 of " + a + ": node-c/c (node node-c) finds only 1"},
		"replaced, seen at a start": {"a: a1 b:a1 b2 c:a2", "", "lost acknowledged record 2 of " + b +
			": node-c/c (node node-c) finds one of node-a/a in its place"},
		"replaced at end": {"a: a1 b:a1 b2 b3", "a2b1", "lost acknowledged record 2 of " + b +
			": the final log finds one of node-a/a in its place"},
		"late ack, record lost later": {"a: a1 b:a2 b3 a2", "a1b2", "lost acknowledged record 2 of " + a},
		"found and lost later": {"a: a1 b:a2", "a1",
			"lost record 2 of node-a/a, which " + b + " found at its start: the final log finds only 1"},
		"found and replaced later": {"a: a1 b:a2", "a1b1", "lost record 2 of node-a/a"},
		"a log from before is lost": {"b:a2 b3", "b3",
			"lost record 1 of node-a/a, which " + b + " found at its start: the final log finds one of node-b/b"},
		"landed after the take-over": {"a: a1 b:a1", "a2",
			"record 2 of " + a + " landed after the take-over by " + b + ": the final log finds it"},
		"landed after the other's records": {"a: a1 b:a1 b2", "a1b1a1",
			"record 3 of node-a/a landed after the take-over by node-b/b: the final log finds it"},
		"landed, seen at a start": {"a: a1 b:a1 c:a2", "",
			"record 2 of " + a + " landed after the take-over by " + b + ": node-c/c (node node-c) finds it"},
		"two writers at once": {"a: a1 b:a1 a2", "", "two writers at once, or a lost record: record 2 of fenced writer " +
			a + ", acknowledged after the start of " + b + ", is not among the 1 found then"},
		"two writers, one sequence":  {"a: a1 b:a1 b2 a2", "", "two writers at once"},
		"two writers, after another": {"a: a1 b:a1 b2 c:a1b1 a2", "", "two writers at once"},
		"late ack twice":             {"a: a1 b:a1 a1", "", a + " repeats record 1 after 1"},
		"gap of a late ack":          {"a: a1 b:a3 a3", "", a + " leaves a gap between records 1 and 3"},
		"gap":                        {"a: a1 a3", "", a + " leaves a gap between records 1 and 3"},
		"gap after start":            {"b:a3 b5", "", b + " leaves a gap between records 3 and 5"},
		"repeat":                     {"a: a1 a2 a2", "", a + " repeats record 2 after 2"},
		"repeat of what was found":   {"a: a1 a2 b:a2 b2", "", b + " repeats record 2 after 2"},
		"ack without start":          {"a: a1 b2", "", "ack of record 2 by node-b/b (node node-b), which never started"},
		"records without start":      {"a: a1", "a1x1", "record 2 is of node-x/x, which never started: the final log"},
		"found without start":        {"a: a1 b:a1x1", "", "record 2 is of node-x/x, which never started: " + b},
		"twice in a log from before": {"c:a1b1a1", "", "record 3 of node-a/a landed after the take-over by node-b/b"},
		"second start":               {"a: a1 a:a1", "", a + " starts twice"},
	} {
		t.Run(name, func(t *testing.T) {
			c1 := NewChecker()
			var first error
			history := parse(c.history)
			if end := history[len(history)-1]; end.Kind == Start && c.log == "" { // one that does not fit counts when it writes
				history = append(history, Report{Kind: Ack, Writer: end.Writer, Node: end.Node, Seq: end.Seq + 1})
			}
			for _, r := range history {
				if err := c1.Add(r); err != nil && first == nil {
					first = err
				}
			}
			if c.log != "" {
				if first != nil {
					t.Errorf("too early: %v", first)
				}
				first = c1.Verify(parseLog(c.log))
			}
			if first == nil || !strings.Contains(first.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", first, c.want)
			}
			if v := c1.Violations(); len(v) != 1 || !errors.Is(v[0], first) {
				t.Errorf("kept %v", v)
			}
		})
	}
}

func TestMalformed(t *testing.T) {
	for want, r := range map[string]Report{
		`unknown kind ""`: {Error: "garbage"},
		"not contiguous":  {Kind: Start, Writer: "a", Seq: 4, Runs: []Run{{"x", 1, 2}, {"y", 4, 4}}},
		"but lists 2":     {Kind: Start, Writer: "a", Seq: 3, Runs: []Run{{"x", 1, 2}}},
	} {
		if err := NewChecker().Add(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	c := NewChecker()
	if err := c.Verify([]Entry{{1, "a"}, {3, "a"}}); err == nil || !strings.Contains(err.Error(), "not contiguous") {
		t.Error(err)
	}
}

func TestCheckerTells(t *testing.T) {
	c := NewChecker()
	if w, n := c.Current(); w != "" || n != "" {
		t.Error(w, n)
	}
	for _, r := range append(parse("a: a1 a2 b:a3 b4 a3"), Report{Kind: Error, Error: "EIO"}, Report{Kind: Stop}) {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if highest, count := c.Acked(); highest != 4 || count != 4 {
		t.Error(highest, count)
	}
	if w := c.Writers(); len(w) != 2 || w[0] != "node-a/a" || w[1] != "node-b/b" {
		t.Error(w)
	}
	if w, n := c.Current(); w != "node-b/b" || n != "node-b" {
		t.Error(w, n)
	}
	if e, s := c.Errors(), c.Stops(); len(e) != 1 || e[0].Error != "EIO" || len(s) != 1 {
		t.Error(e, s)
	}
}

func TestWaitAck(t *testing.T) {
	c := NewChecker()
	var wg sync.WaitGroup
	wait := func(after uint64, node string, want uint64) {
		wg.Go(func() {
			r, err := c.WaitAck(t.Context(), after, node)
			if err != nil || r.Seq != want || node != "" && r.Node != node {
				t.Errorf("after %d by %q: %v, %v", after, node, r, err)
			}
		})
	}
	wait(0, "", 1)
	wait(1, "node-b", 3)
	wait(3, "", 4)
	for _, r := range parse("a: a1 a2 b:a2 b3 b4") {
		_ = c.Add(r)
	}
	wait(2, "", 3) // has arrived before
	wg.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if r, err := c.WaitAck(ctx, 2, "node-a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := NewChecker().WaitAck(ctx, 0, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
