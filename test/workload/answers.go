package workload

import (
	"context"
	"fmt"
	"slices"
)

// WaitAck waits for the ack of a record after a given one, by a writer of a node
// ("" for any), and returns the first of these, which may have arrived before.
func (c *Checker) WaitAck(ctx context.Context, after uint64, node string) (Report, error) {
	for seen := 0; ; {
		c.mu.Lock()
		acks, news, now := c.acks[seen:], c.news, c.current()
		c.mu.Unlock()
		for _, r := range acks {
			if r.Seq > after && (node == "" || r.Node == node) {
				return r, nil
			}
		}
		seen += len(acks)
		select {
		case <-news:
		case <-ctx.Done():
			return Report{}, fmt.Errorf("no ack after record %d by node %q; the writer is %v: %w",
				after, node, now, ctx.Err())
		}
	}
}

// Acked returns the highest acknowledged record and the number of acks.
func (c *Checker) Acked() (highest uint64, count int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.highest, len(c.acks)
}

// Writers returns the names of all writers, in the order of their starts.
func (c *Checker) Writers() (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.writers {
		names = append(names, w.name)
	}
	return names
}

// Current returns the writer that started last, and its node.
func (c *Checker) Current() (writer, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.current(); w != nil {
		return w.name, w.node
	}
	return "", ""
}

// Errors returns the errors that writers have reported.
func (c *Checker) Errors() []Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.errors)
}

// Stops returns the reports of writers that have stopped.
func (c *Checker) Stops() []Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.stops)
}

// Violations returns all violations, nil if there are none.
func (c *Checker) Violations() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.violations)
}
