package guest

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// idle is what the agent's fixed work takes in a guest on an idle machine of two
// cores, and often how often it is done anew: the machine may be busy with other
// things at one time and not at another.
const (
	idle  = 420 * time.Millisecond
	often = 15 * time.Second
)

// pace is how much slower a guest is than on an idle machine.
type pace struct {
	mu       sync.Mutex
	measured []float64 // the last three; the worst counts
	spoilt   bool      // the guest was paused meanwhile
	stop     context.CancelFunc
}

// Stretch makes a time that is enough on an idle machine one that is enough on this
// one, as busy as it has been in the last 45 seconds.
func (g *Guest) Stretch(d time.Duration) time.Duration {
	return time.Duration(float64(d) * g.Slowness())
}

// Slowness is the factor by which Stretch stretches, at least 1.
func (g *Guest) Slowness() float64 {
	g.pace.mu.Lock()
	defer g.pace.mu.Unlock()
	worst := 1.0
	for _, one := range g.pace.measured {
		worst = max(worst, one)
	}
	return worst
}

// measure begins to measure, until the guest is killed.
func (g *Guest) measure() error {
	ctx, stop := context.WithCancel(context.Background())
	g.pace.mu.Lock()
	g.pace.measured, g.pace.stop = nil, stop
	g.pace.mu.Unlock()
	if err := g.work(ctx); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(often):
				_ = g.work(ctx) // it may be paused
			}
		}
	}()
	return nil
}

// work has the agent do its fixed work, and notes what it took.
func (g *Guest) work(ctx context.Context) error {
	g.pace.mu.Lock()
	g.pace.spoilt = false
	g.pace.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL(agentPort)+"/work", nil)
	if err != nil {
		return err
	}
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("pace of %s: %w", g.Name, err)
	}
	took := time.Since(began)
	g.pace.mu.Lock()
	defer g.pace.mu.Unlock()
	if !g.pace.spoilt {
		g.pace.measured = append(g.pace.measured, took.Seconds()/idle.Seconds())
		g.pace.measured = g.pace.measured[max(0, len(g.pace.measured)-3):]
	}
	return resp.Body.Close()
}

// spoil keeps the measurement under way, if there is one, from counting.
func (g *Guest) spoil() {
	g.pace.mu.Lock()
	defer g.pace.mu.Unlock()
	g.pace.spoilt = true
}
