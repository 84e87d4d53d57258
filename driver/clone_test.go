package driver_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

func TestWhatCannotBeCopied(t *testing.T) {
	c, one, two := origin(t)
	one.create("blank", nil)
	one.create("copy", map[string]string{"from": "v"})
	for _, row := range []struct {
		options map[string]string
		says    string
	}{
		{map[string]string{"from": "nothing"}, "option from: there is no volume nothing"},
		{map[string]string{"from": "v@monday"}, "snapshot monday of volume v: not found; there are: s"},
		{map[string]string{"from": "v", "size": "100M"}, `option size="100M": v has 512MiB, and a copy is not made smaller`},
		{map[string]string{"from": "v", "fstype": "xfs"}, `option fstype="xfs": volume v is ext4`},
		{map[string]string{"from": "blank"}, "volume blank was never mounted, so there is nothing to copy yet"},
		{map[string]string{"from": "copy"}, "volume copy was never mounted"},
		{map[string]string{"from": "v", "image-feature": "exclusive-lock,journaling"}, `"journaling" is not a feature that the kernel maps`},
	} {
		err := one.Create(within(t, ever), "w", row.options)
		if err == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", row.options, err)
		}
		if _, err := two.Driver.Get(within(t, ever), "w"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%v: something was made: %v", row.options, err)
		}
	}
	if snaps, err := one.Snapshots(within(t, ever), "v"); err != nil || len(snaps) != 1 {
		t.Errorf("snapshots are left: %v, %v", snaps, err)
	}
	// Deep copies: the manager makes them independent, and there is an end to it.
	from, deepest := "v", 0
	var err error
	for ; deepest < 30 && err == nil; deepest++ {
		name := fmt.Sprintf("deep%d", deepest)
		if err = one.Create(within(t, ever), name, map[string]string{"from": from}); err == nil {
			one.mount(name, "1")
			one.unmount(name, "1")
			from = name
		}
	}
	check(t, err, backend.ErrInvalid, "deep; wait until the manager has made it independent")
	if tasks := c.Flattened(); deepest < 10 || !slices.Contains(tasks, "rbd/deep3") || slices.Contains(tasks, "rbd/deep2") {
		t.Errorf("refused at depth %d, to be flattened: %v", deepest, tasks)
	}
}

// Two nodes make a copy at the same moment, each of a snapshot of its own, and the
// promise that stays is not that of the image that stays: it is as it was asked for.
func TestTwoNodesMakeACopy(t *testing.T) {
	_, one, two := origin(t)
	copied := map[string]string{"from": "v", "size": "1G", "labels": "team=red"}
	promised, made, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	two.tap.on(func(call string) error {
		if call == "Images.Create" {
			two.tap.on(nil)
			one.tap.on(func(call string) error {
				if call == "Images.Create" {
					close(promised)
					<-made
				}
				return nil
			})
			go func() { ended <- one.Create(within(t, ever), "w", copied) }()
			<-promised
		}
		return nil
	})
	two.create("w", copied)
	close(made)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	if status := two.status("w"); status["size"] != "1GiB" || fmt.Sprint(status["labels"]) != "map[team:red]" {
		t.Errorf("status: %v", status)
	}
}

// What is left of a create that died is not meant for another clone of the name.
func TestAPromiseOfACopyIsForNoOtherImage(t *testing.T) {
	c, one, two := origin(t)
	one.tap.on(func(call string) error {
		if call == "Images.Create" {
			return errors.New("it died here")
		}
		return nil
	})
	if err := one.Create(within(t, ever), "w", map[string]string{"from": "v@s", "labels": "team=red"}); err == nil {
		t.Fatal("no error")
	}
	c.Snapshot("v", "other")
	h, err := two.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := h.Snapshots(within(t, ever))
	if err != nil {
		t.Fatal(err)
	}
	from := backend.Parent{PoolSpec: backend.PoolSpec{Pool: "rbd"}, Image: "v", ID: h.Image().ID, Snap: "other", SnapID: snaps[1].ID}
	if err := two.client.Create(within(t, ever), backend.ImageSpec{Name: "w", Size: 512 << 20, Features: h.Image().Features, Parent: &from}); err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	if labels := fmt.Sprint(two.status("w")["labels"]); labels != "map[team:blue]" { // as rbd clone has made it
		t.Errorf("labels: %s", labels)
	}
}
