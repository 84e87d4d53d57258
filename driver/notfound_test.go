package driver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// allFaults is every kind of error that a part may return.
var allFaults = []error{
	backend.ErrNotFound, backend.ErrExists, backend.ErrAmbiguous, backend.ErrInvalid, backend.ErrBusy, backend.ErrInUse, backend.ErrConflict,
	backend.ErrUnavailable, backend.ErrDenied, backend.ErrOverloaded, backend.ErrUnusable, backend.ErrNotPropagated, backend.ErrUnexpectedContent,
	context.DeadlineExceeded, context.Canceled, io.ErrUnexpectedEOF, syscall.EIO, syscall.EPERM, syscall.EMFILE, errors.New("no idea"),
}

// Whatever fails of Get and List, a volume that is there is not called missing: only the
// open of its image may say so. The rows are what a volume may be: new, mounted, a copy.
func TestOnlyTheOpenOfTheImageSaysNotFound(t *testing.T) {
	kinds := map[string]func(n *node){
		"new":     func(n *node) { n.create("v", nil) },
		"mounted": func(n *node) { n.create("v", nil); n.mount("v", "1") },
		"copy": func(n *node) {
			n.create("o", nil)
			n.mount("o", "1")
			n.unmount("o", "1")
			n.create("v", map[string]string{"from": "o"})
		},
	}
	for kind, made := range kinds {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, known %v", kind, known), func(t *testing.T) {
				_, one, two := twoNodes(t)
				made(one)
				ask := one
				if !known {
					ask = two
				}
				calls := callsOf(ask)
				if len(calls) < 8 {
					t.Fatalf("too few steps: %v", calls)
				}
				for call := range calls {
					for _, fault := range allFaults {
						wantNotMissing(t, ask, known, call, func() error { return fmt.Errorf("%s: %w", call, fault) })
					}
					wantNotMissing(t, ask, known, call, func() error { panic("assignment to entry in nil map") })
				}
				ask.tap.on(only([]string{"Images.Open"}, fmt.Errorf("open image: %w", backend.ErrNoVolume)))
				if _, err := ask.Get(within(t, ever), "v"); !errors.Is(err, backend.ErrNoVolume) {
					t.Errorf("the open says that there is none: %v", err)
				}
			})
		}
	}
}

// callsOf are the steps of Get and List.
func callsOf(n *node) map[string]bool {
	calls := map[string]bool{}
	var mu sync.Mutex // a question that takes long has another beside it
	n.tap.on(func(call string) error {
		mu.Lock()
		defer mu.Unlock()
		calls[call] = true
		return nil
	})
	_, _ = n.Get(within(n.t, ever), "v")
	_, _ = n.List(within(n.t, ever))
	n.tap.on(nil)
	mu.Lock()
	defer mu.Unlock()
	calls["Images.Ping"] = true
	return maps.Clone(calls)
}

func wantNotMissing(t *testing.T, n *node, known bool, call string, fault func() error) {
	t.Helper()
	n.tap.on(func(now string) error {
		if now == call {
			return fault()
		}
		return nil
	})
	got := errCrashed // it panics, for the edge to make an error of
	err := backend.Survive(func() error {
		_, got = n.Get(within(t, ever), "v")
		_, err := n.List(within(t, ever))
		return err
	})
	n.tap.on(nil)
	if errors.Is(got, backend.ErrNoVolume) || errors.Is(err, backend.ErrNoVolume) {
		t.Errorf("%s fails: called missing: %v, %v", call, got, err)
	}
	if met := new(backend.PanicError); err != nil && !errors.As(err, &met) {
		t.Errorf("%s fails: list: %v", call, err)
	}
	if known && got != nil && !errors.Is(got, errCrashed) {
		t.Errorf("%s fails: the cache knows it, and yet: %v", call, got)
	}
	n.answers("v")
}

// A fault of the plugin's own in what it does by itself, or in one of several places, is
// logged with its stack, and the rest goes on.
func TestAPanicEndsNothing(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	rounds := make(chan struct{}, 100)
	ctx, stop := context.WithCancel(within(t, ever))
	one.tap.on(func(call string) error {
		if call == "Fences.Fenced" || call == "Images.Names" || call == "Mapper.Size" {
			select {
			case rounds <- struct{}{}:
			default:
			}
			panic("a fault in " + call)
		}
		return nil
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		go one.Follow(ctx, 1)
		one.Watch(ctx, 1)
	}()
	for range 20 {
		<-rounds
	}
	stop()
	<-ended
	one.tap.on(nil)
	for _, want := range []string{"a fault in Fences.Fenced", "a fault in Images.Names", "stack="} {
		if !strings.Contains(one.log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	one.tap.on(func(call string) error {
		if call == "Records.Load" {
			panic("a fault in load")
		}
		return nil
	})
	_, listErr := one.GuardStatus(within(t, ever))
	one.tap.on(nil)
	if met := new(backend.PanicError); !errors.As(listErr, &met) || !strings.Contains(listErr.Error(), "volume v: ") {
		t.Errorf("who has what: %v", listErr)
	}
	places, rbd, _ := twoPlaces(t)
	rbd.on(func(string) error { panic("in one place") })
	err := backend.Survive(func() error { _, err := places.Get(within(t, ever), "v"); return err })
	if met := new(backend.PanicError); !errors.As(err, &met) || errors.Is(err, backend.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// A hand wrote the record of a volume that is to be made.
func TestAPendingRecordWithoutMetadata(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	version, err := one.client.Load(within(t, ever), "pending.v", new(any))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.client.CompareAndSwap(within(t, ever), "pending.v", version, map[string]any{"image": map[string]any{"name": "v", "size": 1 << 29}}); err != nil {
		t.Fatal(err)
	}
	h, err := one.client.Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetMeta(within(t, ever), map[string]string{"description": "of a hand"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(within(t, ever)); err != nil {
		t.Fatal(err)
	}
	if v := one.status("v"); v["description"] != "of a hand" {
		t.Errorf("%v", v)
	}
}
