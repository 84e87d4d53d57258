package driver_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

func TestGrowth(t *testing.T) {
	c, one, _ := origin(t)
	full := func() bool {
		needs, err := one.Host.NeedsResize(context.Background(), one.device("v"), "ext4")
		return err == nil && !needs
	}
	c.Resize("v", 1<<30)
	one.mount("v", "1")
	if !full() {
		t.Error("not grown by the mount")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go one.Follow(ctx, time.Millisecond)
	for _, again := range []bool{false, true} {
		if again { // a plugin that was restarted knows nothing of before
			one.restart()
			go one.Follow(ctx, time.Millisecond)
		}
		c.Resize("v", 2<<30+map[bool]uint64{true: 1 << 20}[again])
		for end := time.Now().Add(ever); !full(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not grown while mounted; after a restart: %v\n%s", again, one.log)
			}
		}
	}
	if one.status("v")["size"] != "2049MiB" {
		t.Errorf("status: %v", one.status("v"))
	}
}

// resize2fs reads what the kernel may not have at hand: it would hang until Ceph is back.
func TestAfterARestartNothingIsGrownWhileCephIsAway(t *testing.T) {
	_, one, _ := origin(t)
	one.mount("v", "1")
	one.restart()
	for _, away := range []bool{true, false} {
		ctx, cancel := context.WithTimeout(context.Background(), ever)
		defer cancel()
		var looks atomic.Int32
		var grown atomic.Bool
		one.tap.on(func(call string) error { // Ceph is asked meanwhile
			switch call {
			case "Images.Names", "Images.Ping":
				if away {
					return backend.ErrUnavailable
				}
			case "Mapper.Mappings":
				looks.Add(1)
			case "Filesystem.Resize":
				grown.Store(true)
			}
			if away && looks.Load() == 9 || grown.Load() {
				cancel()
			}
			return nil
		})
		_, _ = one.List(ctx)
		one.Follow(ctx, time.Millisecond)
		if grown.Load() == away {
			t.Errorf("Ceph away: %v, grown: %v", away, grown.Load())
		}
	}
}

// The look finds the mapping, and the mount that made it is through before it is the
// look's turn, for which that waits 10 ms.
func TestWhatAMountHasGrownIsNotGrownAgain(t *testing.T) {
	_, one, _ := origin(t)
	ctx, cancel := context.WithTimeout(context.Background(), ever)
	defer cancel()
	var looks atomic.Int32
	mounting, look := make(chan struct{}), make(chan struct{})
	one.tap.on(func(call string) error {
		switch call {
		case "Filesystem.Mount":
			close(mounting)
			<-look
		case "Mapper.Size":
			if looks.Add(1) == 2 { // the first one is the mount's
				time.AfterFunc(2*time.Millisecond, func() { close(look) })
			}
		case "Filesystem.Resize":
			t.Error("it was grown")
		}
		if looks.Load() > 9 {
			cancel()
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := one.Driver.Mount(ctx, "v", "1")
		ended <- err
	}()
	<-mounting
	one.Follow(ctx, time.Millisecond)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// grows tells whether anything is grown in the next three looks.
func (n *node) grows() bool {
	seen := order(n, "Mapper.Mappings", "Filesystem.Resize")
	ctx, cancel := context.WithTimeout(context.Background(), ever)
	defer cancel()
	n.tap.then = func(string) {
		if len(*seen) == 3 {
			cancel()
		}
	}
	defer func() { n.tap.before, n.tap.then = nil, nil }()
	n.Follow(ctx, time.Millisecond)
	return slices.Contains(*seen, "Filesystem.Resize")
}

func TestANewFilesystemIsNotGrown(t *testing.T) {
	_, one, _ := origin(t)
	one.create("new", nil)
	one.mount("new", "1")
	if one.grows() {
		t.Error("it was grown")
	}
}

// A filesystem that was just mounted fills its device, whatever the list of
// mappings said that was asked for a moment before.
func TestWhatIsMountedDuringALookIsNotGrown(t *testing.T) {
	_, one, _ := origin(t)
	var seen *[]string
	ctx, cancel := context.WithTimeout(context.Background(), ever)
	defer cancel()
	one.tap.then = func(string) {
		one.tap.then = nil
		one.mount("v", "1") // the list has been made without it
		seen = order(one, "Mapper.Mappings", "Filesystem.Resize")
		one.tap.then = func(string) {
			if len(*seen) == 3 {
				cancel()
			}
		}
	}
	one.Follow(ctx, time.Millisecond)
	if !slices.Equal(*seen, []string{"Mapper.Mappings", "Mapper.Mappings", "Mapper.Mappings"}) {
		t.Errorf("after the mount: %v", *seen)
	}
}
