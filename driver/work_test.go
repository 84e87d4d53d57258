package driver_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// slow makes a call of a node take until release, and counts how often it is made.
func slow(n *node, call string) (calls *atomic.Int32, release func()) {
	calls = new(atomic.Int32)
	end := make(chan struct{})
	n.tap.on(func(now string) error {
		if now == call {
			calls.Add(1)
			<-end
		}
		return nil
	})
	return calls, func() { close(end) }
}

// eventually waits for what must come.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(ever); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

// A check, or the making of a filesystem, that takes longer than its request goes on
// under the guard; the next mount waits for its end, and does not begin it again.
func TestALongStepOutlivesItsRequest(t *testing.T) {
	for _, row := range []struct {
		call, says string
		before     func(n *node)
	}{
		{"Filesystem.Format", "making its ext4", func(*node) {}},
		{"Filesystem.Check", "checking its ext4", func(n *node) { n.mount("v", "0"); n.unmount("v", "0") }},
	} {
		for _, joined := range []bool{true, false} {
			virtual(t, fmt.Sprintf("%s, the next waits for its end: %v", row.call, joined), func(t *testing.T) {
				one, two := keeper(t, 300*time.Millisecond)
				row.before(one)
				calls, release := slow(one, row.call)
				one.refused("v", "1", backend.ErrBusy, "mount volume v: busy: "+row.says, "it goes on")
				if work := fmt.Sprint(one.status("v")["work"]); !strings.Contains(work, row.says) {
					t.Errorf("status: work: %s", work)
				}
				one.refused("v", "1", backend.ErrBusy, "mount volume v: busy: "+row.says, "a request of before")
				one.Reconcile(within(t, soon))
				two.refused("v", "1", backend.ErrInUse, "node one")
				mounted := make(chan error, 1)
				if joined {
					go func() {
						_, err := one.Driver.Mount(within(t, ever), "v", "1")
						mounted <- err
					}()
					time.Sleep(10 * time.Millisecond)
				}
				release()
				if joined {
					if err := <-mounted; err != nil {
						t.Fatal(err)
					}
				} else {
					eventually(t, "nothing is left of a mount that nobody uses", func() bool {
						_, _, held := one.guard("v")
						return !held && one.device("v") == ""
					})
					two.mount("v", "1")
					two.unmount("v", "1")
					one.mount("v", "1")
				}
				one.tap.on(nil)
				want := map[string]int32{"Filesystem.Format": 1, "Filesystem.Check": 1}[row.call]
				if row.call == "Filesystem.Check" { // a sound one costs nothing
					want++
				}
				if n := calls.Load(); n > want {
					t.Errorf("%s was begun %d times", row.call, n)
				}
				if w := one.status("v")["work"]; w != nil {
					t.Errorf("still at work: %v", w)
				}
			})
		}
	}
}

// What fails after its request has ended is undone, and told by the log.
func TestALongStepThatFailsAlone(t *testing.T) { inVirtualTime(t, testALongStepThatFailsAlone) }

func testALongStepThatFailsAlone(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	end := make(chan struct{})
	one.tap.on(func(call string) error {
		if call == "Filesystem.Format" {
			<-end
			return errors.New("no space left")
		}
		return nil
	})
	one.refused("v", "1", backend.ErrBusy, "making its ext4")
	close(end)
	eventually(t, "the guard is given back", func() bool {
		_, _, held := one.guard("v")
		return !held
	})
	if !strings.Contains(one.log.String(), "no space left") {
		t.Errorf("the log:\n%s", one.log)
	}
	two.mount("v", "1")
}

// Another node fences the control client, for a call of another volume that was left
// unfinished, while a roll-back is under way.
func TestARollBackHasAClientOfItsOwn(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	if err := one.write("v", "ext4 before"); err != nil {
		t.Fatal(err)
	}
	if _, err := one.CreateSnapshot(within(t, ever), "v", "s"); err != nil {
		t.Fatal(err)
	}
	if err := one.write("v", "ext4 after"); err != nil {
		t.Fatal(err)
	}
	one.unmount("v", "1")
	control := one.client.Addr()
	one.tap.on(func(call string) error {
		if call == "Handle.Rollback" {
			if err := two.client.Fence(within(t, ever), control); err != nil {
				return err
			}
			one.reconnect()
		}
		return nil
	})
	if err := one.Rollback(within(t, ever), "v", "s"); err != nil {
		t.Fatal(err)
	}
	one.tap.on(nil)
	two.mount("v", "1")
	two.holds("v", "ext4 before")
}

// Who looks into the log of a node sees what it is at.
func TestALongStepIsInTheLogEachMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, one, _ := twoNodes(t)
		one.create("v", nil)
		one.tap.on(func(call string) error {
			if call == "Filesystem.Format" {
				time.Sleep(150 * time.Second)
			}
			return nil
		})
		one.refused("v", "1", backend.ErrBusy, "making its ext4")
		time.Sleep(300 * time.Second) // and what it made is kept for a minute
		for _, want := range []string{"making its ext4, for 1m0s now", "making its ext4, for 2m0s now", "what outlived its request is done"} {
			if !strings.Contains(one.log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, one.log)
			}
		}
		synctest.Wait()
	})
}
