package driver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// held tells how many volumes the locks remember.
func (l *locks) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.busy)
}

func mustLock(t *testing.T, l *locks, volume, op string) (unlock func()) {
	t.Helper()
	unlock, err := l.lock(t.Context(), volume, op)
	if err != nil {
		t.Fatalf("lock %s: %v", volume, err)
	}
	return unlock
}

func TestOneOperationAtATimeWorksOnAVolume(t *testing.T) {
	var (
		l      locks
		group  sync.WaitGroup
		inside int // without a lock of its own: the race detector looks on too
		done   int
	)
	for range 50 {
		group.Go(func() {
			unlock, err := l.lock(t.Context(), "db1", "mount")
			if err != nil {
				t.Error(err)
				return
			}
			if inside++; inside != 1 {
				t.Errorf("%d at a time", inside)
			}
			done++
			inside--
			unlock()
		})
	}
	group.Wait()
	if done != 50 {
		t.Errorf("%d of 50 came in", done)
	}
	if n := l.held(); n != 0 {
		t.Errorf("%d volumes still remembered", n)
	}
}

func TestDifferentVolumesDoNotWaitForEachOther(t *testing.T) {
	var l locks
	first := mustLock(t, &l, "db1", "mount")
	second := mustLock(t, &l, "db2", "mount")
	if n := l.held(); n != 2 {
		t.Errorf("%d volumes remembered, want 2", n)
	}
	second()
	first()
	if n := l.held(); n != 0 {
		t.Errorf("%d volumes still remembered", n)
	}
}

func TestWhoeverWaitsComesInWhenTheHolderIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		unlock := mustLock(t, &l, "db1", "create")
		in := false
		go func() {
			unlock, err := l.lock(t.Context(), "db1", "mount")
			if err != nil {
				t.Error(err)
				return
			}
			in = true
			unlock()
		}()
		synctest.Wait()
		if in {
			t.Error("two at a time")
		}
		unlock()
		synctest.Wait()
		if !in {
			t.Error("still waiting though the lock is free")
		}
		if n := l.held(); n != 0 {
			t.Errorf("%d volumes still remembered", n)
		}
	})
}

func TestWaitingEndsWithTheContextAndNamesTheOperationUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		unlock := mustLock(t, &l, "db1", "mount")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := l.lock(ctx, "db1", "remove")
		const want = "busy: another mount of the same volume is still under way on this node"
		if !errors.Is(err, backend.ErrBusy) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if ctx.Err() == nil {
			t.Error("it did not wait for the deadline")
		}
		// Giving up leaves the lock with its holder, and usable after it.
		if n := l.held(); n != 1 {
			t.Errorf("%d volumes remembered, want 1", n)
		}
		unlock()
		mustLock(t, &l, "db1", "remove")()
		if n := l.held(); n != 0 {
			t.Errorf("%d volumes still remembered", n)
		}
	})
}

func TestTheHolderThatIsNamedIsTheLastOne(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var l locks
	mustLock(t, &l, "db1", "create")()
	unlock := mustLock(t, &l, "db1", "unmount")
	defer unlock()
	_, err := l.lock(ended, "db1", "mount")
	const want = "busy: another unmount of the same volume is still under way on this node"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A request whose time is over finds a volume that nobody works on: whatever
// the answer, it must not blame somebody who is not there.
func TestNobodyIsBlamedForAFreeVolume(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var l locks
	for range 100 { // select chooses at random
		unlock, err := l.lock(ended, "db1", "mount")
		switch {
		case err == nil:
			unlock()
		case errors.Is(err, backend.ErrBusy):
			t.Fatalf("nobody works on the volume, yet: %v", err)
		}
	}
	if n := l.held(); n != 0 {
		t.Errorf("%d volumes still remembered", n)
	}
}

func TestReferencesAreCountedPerID(t *testing.T) {
	type step struct {
		do   string // + adds, - drops
		id   string
		left int // ids that are left
	}
	for _, row := range []struct {
		name  string
		steps []step
	}{
		{"one container", []step{{"+", "a", 1}, {"-", "a", 0}}},
		{"two containers", []step{{"+", "a", 1}, {"+", "b", 2}, {"-", "a", 1}, {"-", "b", 0}}},
		{"docker cp mounts once more with the container's id", []step{{"+", "a", 1}, {"+", "a", 1}, {"-", "a", 1}, {"-", "a", 0}}},
		{"docker cp twice", []step{{"+", "a", 1}, {"+", "a", 1}, {"+", "a", 1}, {"-", "a", 1}, {"-", "a", 1}, {"-", "a", 0}}},
		{"an id from before a restart", []step{{"-", "old", 0}}},
		{"an id from before a restart, beside a new one", []step{{"+", "a", 1}, {"-", "old", 1}, {"-", "a", 0}}},
		{"unmounted once too often", []step{{"+", "a", 1}, {"-", "a", 0}, {"-", "a", 0}, {"+", "a", 1}, {"-", "a", 0}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var r refs
			r.add("other", "a")
			for i, s := range row.steps {
				left := 0
				if s.do == "+" {
					r.add("db1", s.id)
					left = r.count("db1")
				} else {
					left = r.drop("db1", s.id)
				}
				if left != s.left || r.count("db1") != s.left {
					t.Errorf("step %d (%s%s): %d left, counted %d, want %d", i+1, s.do, s.id, left, r.count("db1"), s.left)
				}
			}
			if n := r.count("other"); n != 1 {
				t.Errorf("another volume has %d references, want 1", n)
			}
		})
	}
}

func TestReferencesOfALostMountAreForgotten(t *testing.T) {
	var r refs
	r.add("db1", "a")
	r.add("db1", "a")
	r.add("db1", "b")
	r.add("db2", "a")
	r.forget("db1")
	r.forget("never")
	if r.count("db1") != 0 || r.count("db2") != 1 {
		t.Errorf("db1 has %d, db2 has %d; want 0 and 1", r.count("db1"), r.count("db2"))
	}
	if left := r.drop("db1", "a"); left != 0 {
		t.Errorf("%d left after the Unmount that comes late", left)
	}
}

func TestReferencesLeaveNothingBehind(t *testing.T) {
	var r refs
	r.drop("never", "a")
	r.add("db1", "a")
	r.drop("db1", "a")
	if len(r.m) != 0 {
		t.Errorf("still there: %v", r.m)
	}
}
