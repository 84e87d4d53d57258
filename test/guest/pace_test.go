package guest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// agentTaking is a guest whose agent takes so long for its work.
func agentTaking(t *testing.T, took *atomic.Int64) *Guest {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Duration(took.Load())) }))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(at.Port())
	if err != nil {
		t.Fatal(err)
	}
	return &Guest{Name: "node", ports: map[int]int{agentPort: port}}
}

func TestWaitsAreStretchedByThePace(t *testing.T) {
	var took atomic.Int64
	g := agentTaking(t, &took)
	if got := g.Stretch(time.Second); got != time.Second {
		t.Errorf("not measured yet: %v", got)
	}
	for _, row := range []struct {
		took    time.Duration
		atLeast time.Duration // of a second
	}{
		{0, time.Second},
		{3 * idle, 3 * time.Second},
		{0, 3 * time.Second}, // it was so a moment ago
		{0, 3 * time.Second},
	} {
		took.Store(int64(row.took))
		if err := g.work(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := g.Stretch(time.Second); got < row.atLeast {
			t.Errorf("the work took %v: a second becomes %v", row.took, got)
		}
	}
	before := g.Slowness()
	if err := g.work(context.Background()); err != nil || g.Slowness() >= before {
		t.Errorf("after three that were fast: %v, %v", g.Slowness(), err)
	}
}

// A guest that is paused is not slow.
func TestAPauseDoesNotCount(t *testing.T) {
	var took atomic.Int64
	took.Store(int64(5 * idle))
	g := agentTaking(t, &took)
	done := make(chan error)
	go func() { done <- g.work(context.Background()) }()
	time.Sleep(2 * idle)
	g.spoil()
	if err := <-done; err != nil || g.Slowness() != 1 {
		t.Errorf("slowness %v, %v", g.Slowness(), err)
	}
}
