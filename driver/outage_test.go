package driver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// stepsOfGet are the calls by which a volume is described, after its image is open.
var stepsOfGet = []string{"Handle.Meta", "Records.Load", "Handle.Snapshots", "Handle.Clones", "Handle.Layout"}

// only is a fault of these calls while "v" is asked about.
func only(calls []string, fault error) func(string) error {
	return func(call string) error {
		if slices.Contains(calls, call) {
			return fault
		}
		return nil
	}
}

// One volume that cannot be described, whatever fails of it and how, is told as an error
// of that volume. Nobody else hears of it.
func TestOneBadVolumeIsNoOutage(t *testing.T) {
	for _, fault := range []error{
		backend.ErrUnavailable, backend.ErrDenied, backend.ErrOverloaded, backend.ErrNotFound, backend.ErrConflict, backend.ErrInvalid, errors.New("-5 input/output error"),
	} {
		for _, step := range stepsOfGet {
			if step == "Records.Load" && errors.Is(fault, backend.ErrNotFound) || step == "Handle.Clones" && errors.Is(fault, backend.ErrDenied) {
				continue // no error: there is no such record; the copies are not this user's to see
			}
			t.Run(step+" "+fault.Error(), func(t *testing.T) {
				_, one, two := twoNodes(t)
				one.create("v", nil)
				one.create("w", nil)
				one.tap.on(only([]string{step}, fault))
				v, err := one.Get(within(t, ever), "v")
				if err != nil || v.Status["ceph"] != nil || v.Status["id"] == nil || !strings.Contains(fmt.Sprint(v.Status["error"]), fault.Error()) {
					t.Fatalf("%+v, %v", v, err)
				}
				one.tap.on(nil)
				two.create("late", nil)
				if w := one.status("w"); w["ceph"] != nil || w["error"] != nil {
					t.Errorf("of another volume: %v", w)
				}
				all, err := one.List(within(t, ever))
				if names := namesOf(all); err != nil || !slices.Equal(names, []string{"late", "v", "w"}) {
					t.Errorf("list: %v, %v", names, err)
				}
				if strings.Contains(one.log.String(), "does not answer") {
					t.Errorf("an outage:\n%s", one.log)
				}
			})
		}
	}
}

// The name is taken, and the image cannot be opened: neither missing nor an outage.
func TestAVolumeThatCannotBeOpened(t *testing.T) {
	for _, known := range []bool{true, false} {
		for _, fault := range []error{backend.ErrUnusable, backend.ErrUnavailable} {
			t.Run(fmt.Sprint(fault, " known ", known), func(t *testing.T) {
				_, one, two := twoNodes(t)
				two.create("v", nil)
				two.create("w", nil)
				if known {
					one.create("v", nil)
				}
				one.tap.on(only([]string{"Images.Open"}, fault))
				v, err := one.Get(within(t, ever), "v")
				if !known && errors.Is(fault, backend.ErrUnavailable) {
					if check(t, err, backend.ErrUnavailable); errors.Is(err, backend.ErrNotFound) {
						t.Errorf("called missing: %v", err)
					}
				} else if err != nil || !strings.Contains(fmt.Sprint(v.Status["error"]), fault.Error()) {
					t.Fatalf("%+v, %v", v, err)
				}
				one.tap.on(nil)
				if w := one.status("w"); w["ceph"] != nil || w["error"] != nil {
					t.Errorf("of another volume: %v", w)
				}
			})
		}
	}
}

// Copies in a pool that this user may not read are no fault of their original.
func TestCopiesThatThisUserMayNotSee(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.tap.on(only([]string{"Handle.Clones"}, backend.ErrDenied))
	if v := one.status("v"); v["error"] != nil || v["copies"] != "not visible to this user" {
		t.Errorf("%v", v)
	}
}

// The list of a pool is a part of Ceph too: List has the cache for an answer, and what
// else is asked is asked.
func TestAPartOfCephIsAway(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.tap.on(only([]string{"Images.Names"}, backend.ErrUnavailable))
	all, err := one.List(within(t, ever))
	if names := namesOf(all); err != nil || !slices.Equal(names, []string{"v"}) {
		t.Fatalf("list: %v, %v", names, err)
	}
	if v := one.status("v"); v["ceph"] != nil {
		t.Errorf("an outage: %v", v)
	}
	one.mount("v", "1")
	one.unmount("v", "1")
}

// What began an outage does not keep it from ending.
func TestAnOutageEndsWhenCephAnswers(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.create("bad", nil)
	one.tap.on(func(string) error { return backend.ErrUnavailable })
	if v, err := one.Get(within(t, ever), "bad"); err != nil || v.Status["ceph"] == nil {
		t.Fatalf("no outage: %v, %v", v, err)
	}
	one.tap.on(only([]string{"Handle.Meta"}, backend.ErrUnavailable))
	one.answers("bad")
	if v, err := one.Get(within(t, ever), "bad"); err != nil || v.Status["error"] == nil {
		t.Errorf("%v, %v", v, err)
	}
	one.tap.on(nil)
	if v := one.status("v"); v["ceph"] != nil {
		t.Errorf("still an outage: %v", v)
	}
}

// What a node has is listed, and taken from it, whatever is wrong with another volume.
func TestABadVolumeDoesNotKeepOperatorsFromTheOthers(t *testing.T) {
	_, one, two := twoNodes(t)
	for _, name := range []string{"a", "bad", "z"} {
		two.create(name, nil)
		two.mount(name, "1")
	}
	var looks atomic.Int32
	one.tap.on(func(call string) error {
		if call == "Images.Open" {
			if looks.Add(1)%4 == 2 {
				return backend.ErrUnusable
			}
		}
		return nil
	})
	all, err := one.GuardStatus(within(t, ever))
	if len(all) != 2 {
		t.Errorf("%v", all)
	}
	check(t, err, backend.ErrUnusable)
	taken := map[string]bool{}
	for range 2 {
		now, _ := one.FenceNode(within(t, ever), "two", "")
		for _, h := range now {
			taken[h.Volume] = true
		}
	}
	if len(taken) != 3 {
		t.Errorf("taken: %v", taken)
	}
}

// A volume was moved from one pool to the other while that one was away: what Ceph says
// now comes before what is cached. Of two volumes dockerd hears in their Status.
func TestTwoPlacesCountOnlyWhenCephHasSpoken(t *testing.T) {
	places, rbd, ssd := twoPlaces(t)
	ctx := within(t, ever)
	if err := places.Create(ctx, "v", nil); err != nil {
		t.Fatal(err)
	}
	if err := ssd.Create(ctx, backend.ImageSpec{Name: "v", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	v, err := places.Get(ctx, "v")
	if err != nil || !strings.Contains(fmt.Sprint(v.Status["error"]), "rbd/v and ssd/v") {
		t.Errorf("two: %v, %v", v.Status, err)
	}
	rbd.on(func(string) error { return backend.ErrUnavailable })
	v, err = places.Get(ctx, "v")
	if err != nil || v.Status["pool"] != "ssd" || v.Status["error"] != nil {
		t.Errorf("one is away: %v, %v", v.Status, err)
	}
}

// Who asks waits for the question, and not for a second one of the same length.
func TestAnOutageIsFoundOutInTheTimeOfOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, _ := twoNodes(t)
		one.create("v", nil)
		one.tap.on(func(call string) error {
			switch call {
			case "Images.Open", "Images.Names":
				time.Sleep(100 * time.Millisecond) // half of the patience, as the cache knows it
				return backend.ErrUnavailable
			case "Images.Ping":
				time.Sleep(80 * time.Millisecond)
				return backend.ErrUnavailable
			}
			return nil
		})
		start := time.Now()
		if v, err := one.Get(t.Context(), "v"); err != nil || v.Status["ceph"] == nil {
			t.Errorf("no outage: %v, %v", v.Status, err)
		}
		if took := time.Since(start); took > 110*time.Millisecond {
			t.Errorf("found out after %v", took)
		}
		one.tap.on(nil)
		time.Sleep(time.Second)
		synctest.Wait()
	})
}

// A machine that has only just booted takes a while to connect, and longer than a short
// question, or a ping, has. Then Ceph answers, so who mounts waits on.
func TestASlowCephIsNotAway(t *testing.T) {
	slow := func() func(string) error {
		var pings, looks atomic.Int32
		return func(call string) error {
			switch {
			case call == "Images.Ping" && pings.Add(1) == 1:
				time.Sleep(80 * time.Millisecond)
				return backend.ErrUnavailable
			case call == "Images.Exists" && looks.Add(1) == 1:
				time.Sleep(250 * time.Millisecond) // of the 400 that it has
			}
			return nil
		}
	}
	virtual(t, "the plugin has just started", func(t *testing.T) {
		_, one, _ := twoNodes(t)
		one.create("v", nil)
		listed, list := make(chan struct{}), make(chan struct{})
		var first sync.Once
		again := slow()
		one.tap.on(func(call string) error {
			if call == "Images.Names" {
				first.Do(func() { close(listed) })
				<-list
			}
			return again(call)
		})
		ctx, stop := context.WithCancel(within(t, ever))
		var watch sync.WaitGroup
		watch.Go(func() { one.Watch(ctx, ever) })
		<-listed
		one.mount("v", "1")
		close(list)
		stop()
		watch.Wait()
	})
	virtual(t, "one of two places", func(t *testing.T) {
		places, rbd, _ := twoPlaces(t)
		ctx := within(t, ever)
		if err := places.Create(ctx, "v", nil); err != nil {
			t.Fatal(err)
		}
		rbd.on(slow())
		if _, err := places.Mount(ctx, "v", "1"); err != nil {
			t.Error(err)
		}
	})
}

// If Ceph has no answer at all, who mounts hears why, and not that a question was cut short.
func TestAMountHearsWhyCephIsAway(t *testing.T) { inVirtualTime(t, testAMountHearsWhyCephIsAway) }

func testAMountHearsWhyCephIsAway(t *testing.T) {
	places, rbd, _ := twoPlaces(t)
	ctx := within(t, ever)
	if err := places.Create(ctx, "v", nil); err != nil {
		t.Fatal(err)
	}
	rbd.on(func(call string) error {
		switch call {
		case "Images.Ping":
			return fmt.Errorf("%w: no monitor answers", backend.ErrUnavailable)
		case "Images.Exists":
			time.Sleep(150 * time.Millisecond) // less than it has
		}
		return nil
	})
	_, err := places.Mount(ctx, "v", "1")
	check(t, err, backend.ErrUnavailable, "no monitor answers")
}
