package workload

import (
	"fmt"
	"slices"
	"sync"
)

// Checker judges the reports of all writers of one log. The records that the
// first of them finds are taken as they are.
type Checker struct {
	mu         sync.Mutex
	writers    []*writer // in the order of their starts; the last one is current
	found      []Run     // by the current writer at its start
	doubtful   []doubt   // writers that are not counted yet
	acks       []Report  // those that are no violation
	highest    uint64    // of acks
	stops      []Report
	errors     []Report
	violations []error
	news       chan struct{} // closed when there is a new ack
}

// writer has records from found+1 on, and those up to acked are acknowledged.
type writer struct {
	name, node   string
	found, acked uint64
}

// doubt is a start that does not fit. If that writer then writes, data is lost.
// Else it has been paused between what it read and its report, and fenced there.
type doubt struct {
	writer *writer
	found  []Run
	why    error
}

func (w *writer) String() string { return fmt.Sprintf("%s (node %s)", w.name, w.node) }

// NewChecker makes a checker that knows of no writer.
func NewChecker() *Checker { return &Checker{news: make(chan struct{})} }

// Add takes the next report. It returns the violation that the report shows, and
// keeps it.
func (c *Checker) Add(r Report) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Kind {
	case Start:
		return c.keep(c.start(r))
	case Ack:
		if err := c.keep(c.writes(r.Writer)); err != nil {
			return err
		}
		return c.keep(c.ack(r))
	case Stop:
		c.stops = append(c.stops, r)
	case Error:
		c.errors = append(c.errors, r)
	default:
		return c.keep(fmt.Errorf("report of unknown kind %q by %q: %s", r.Kind, r.Writer, r.Error))
	}
	return nil
}

// Verify judges the log when all writers have ended.
func (c *Checker) Verify(entries []Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keep(c.judge(Runs(entries), "the final log"))
}

func (c *Checker) keep(violation error) error {
	if violation != nil {
		c.violations = append(c.violations, violation)
	}
	return violation
}

func (c *Checker) start(r Report) error {
	w := &writer{name: r.Writer, node: r.Node, found: r.Seq, acked: r.Seq}
	if old := c.writer(r.Writer); old != nil {
		return fmt.Errorf("%v starts twice", old)
	}
	if err := contiguous(r.Runs, w.String()); err != nil {
		return err
	}
	if r.Seq != last(r.Runs) {
		return fmt.Errorf("%v finds %d records at its start, but lists %d", w, r.Seq, last(r.Runs))
	}
	if why := c.judge(r.Runs, w.String()); why != nil {
		c.doubtful = append(c.doubtful, doubt{w, r.Runs, why})
		return nil //nolint:nilerr // it is kept until this writer writes
	}
	c.writers, c.found = append(c.writers, w), r.Runs
	return nil
}

// writes ends the doubt about a writer, if there is one.
func (c *Checker) writes(name string) error {
	for i, d := range c.doubtful {
		if d.writer.name == name {
			c.doubtful = slices.Delete(c.doubtful, i, i+1)
			c.writers, c.found = append(c.writers, d.writer), d.found
			return d.why
		}
	}
	return nil
}

func (c *Checker) ack(r Report) error {
	w, now := c.writer(r.Writer), c.current()
	switch {
	case w == nil:
		return fmt.Errorf("ack of record %d by %s (node %s), which never started", r.Seq, r.Writer, r.Node)
	case w != now && owner(c.found, r.Seq) != w.name:
		return fmt.Errorf("two writers at once, or a lost record: record %d of fenced writer %v, "+
			"acknowledged after the start of %v, is not among the %d found then", r.Seq, w, now, now.found)
	case r.Seq <= w.acked:
		return fmt.Errorf("%v repeats record %d after %d", w, r.Seq, w.acked)
	}
	// A writer that was paused between its fsync and its report may be late.
	before := w.acked
	w.acked = r.Seq
	c.acks = append(c.acks, r)
	c.highest = max(c.highest, r.Seq)
	close(c.news)
	c.news = make(chan struct{})
	if r.Seq != before+1 {
		return fmt.Errorf("%v leaves a gap between records %d and %d", w, before, r.Seq)
	}
	return nil
}

// contiguous tells whether the runs are those of a log.
func contiguous(runs []Run, who string) error {
	var end uint64
	for _, r := range runs {
		if r.First != end+1 || r.Last < r.First {
			return fmt.Errorf("%s finds a log that is not contiguous: after record %d come %d to %d of %s",
				who, end, r.First, r.Last, r.Writer)
		}
		end = r.Last
	}
	return nil
}

// judge compares the log that who has read with what is known of it.
func (c *Checker) judge(runs []Run, who string) error {
	if err := contiguous(runs, who); err != nil {
		return err
	}
	for _, w := range c.writers {
		if seq := missing(runs, Run{w.name, w.found + 1, w.acked}); seq > 0 {
			return fmt.Errorf("lost acknowledged record %d of %v: %s", seq, w, instead(runs, seq, who))
		}
	}
	for _, r := range c.found { // durable as well: see Start
		if seq := missing(runs, r); seq > 0 {
			return fmt.Errorf("lost record %d of %s, which %v found at its start: %s",
				seq, r.Writer, c.current(), instead(runs, seq, who))
		}
	}
	return c.order(runs, who)
}

// order wants the writers' records in the order of their starts. All that a
// writer's successor has not found may not be there later either.
func (c *Checker) order(runs []Run, who string) error {
	now := c.current()
	for i, r := range runs {
		if i > 0 && slices.ContainsFunc(runs[:i], func(o Run) bool { return o.Writer == r.Writer }) {
			return fmt.Errorf("record %d of %s landed after the take-over by %s: %s finds it", r.First,
				r.Writer, runs[i-1].Writer, who)
		}
		if now == nil || r.Last <= now.found || r.Writer == now.name {
			continue
		}
		seq := max(r.First, now.found+1)
		if w := c.writer(r.Writer); w != nil {
			return fmt.Errorf("record %d of %v landed after the take-over by %v: %s finds it", seq, w, now, who)
		}
		return fmt.Errorf("record %d is of %s, which never started: %s finds it", seq, r.Writer, who)
	}
	return nil
}

func instead(runs []Run, seq uint64, who string) string {
	if name := owner(runs, seq); name != "" {
		return fmt.Sprintf("%s finds one of %s in its place", who, name)
	}
	return fmt.Sprintf("%s finds only %d", who, last(runs))
}

func (c *Checker) writer(name string) *writer {
	for _, w := range slices.Backward(c.writers) {
		if w.name == name {
			return w
		}
	}
	return nil
}

func (c *Checker) current() *writer {
	if len(c.writers) == 0 {
		return nil
	}
	return c.writers[len(c.writers)-1]
}

func last(runs []Run) uint64 {
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].Last
}

func owner(runs []Run, seq uint64) string {
	for _, r := range runs {
		if r.First <= seq && seq <= r.Last {
			return r.Writer
		}
	}
	return ""
}

// missing returns the first record of want that is not in runs, or 0.
func missing(runs []Run, want Run) uint64 {
	seq := want.First
	for _, r := range runs {
		if r.Writer == want.Writer && r.First <= seq && seq <= r.Last {
			seq = r.Last + 1
		}
	}
	if seq > want.Last {
		return 0
	}
	return seq
}
