package krbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

// writers are those of one volume, on whichever node, and who judges them.
type writers struct {
	*workload.Checker
	volume string
}

// watched makes a volume for a test, and looks at its end at what was written.
func watched(t *testing.T) *writers {
	t.Helper()
	w := &writers{workload.NewChecker(), volumeName(t)}
	must(t, one.create(w.volume))
	t.Cleanup(func() {
		file := filepath.Join(work, "copy.img")
		testbed.RBD(t, "export", "--no-progress", "rbd/"+w.volume, file)
		dir := t.TempDir()
		entries, err := workload.Inspect(file, dir, false)
		if err == nil {
			err = w.Verify(entries)
		}
		if err := errors.Join(err, errors.Join(w.Violations()...), os.Remove(file)); err != nil {
			t.Error(err)
		}
		if acked, _ := w.Acked(); acked == 0 {
			t.Error("nothing was written")
		}
		if _, err := one.volume(time.Minute, "Remove", w.volume, "", nil); err != nil {
			t.Error(err)
		}
	})
	return w
}

// write mounts the volume on a node and starts a writer there, which ends with
// an error or when it is stopped. ended tells how.
func (w *writers) write(t *testing.T, n *node) (ended chan error) {
	t.Helper()
	path, err := n.mount(w.volume, "writer")
	must(t, err)
	ended = make(chan error, 1)
	in, out := io.Pipe()
	go func() {
		err := n.Stream(10*time.Minute, out, n.file("writer"), "-file", path+"/log", "-report", "-", "-node", n.Name)
		_ = out.Close()
		ended <- err
	}()
	go workload.Follow(in, func(r workload.Report) { _ = w.Add(r) })
	w.wait(t, n, 10)
	return ended
}

// wait waits for new records of a node.
func (w *writers) wait(t *testing.T, n *node, records uint64) time.Time {
	t.Helper()
	after, _ := w.Acked()
	ctx, cancel := context.WithTimeout(t.Context(), n.Stretch(time.Minute))
	defer cancel()
	r, err := w.WaitAck(ctx, after+records-1, n.Name)
	must(t, err)
	return r.At
}

// stopped ends a writer in order, and gives the volume back.
func (w *writers) stopped(t *testing.T, n *node, ended chan error) {
	t.Helper()
	_, err := n.Sh(quick, "for p in $(echo "+root+"/volumes/"+w.volume+"/log | grep -lszxF -f - /proc/[0-9]*/cmdline | cut -d/ -f3); do kill $p; done; true")
	must(t, err, <-ended, n.unmount(w.volume, "writer"))
}

// failed waits for the end of a writer that has lost its volume.
func (w *writers) failed(t *testing.T, n *node, ended chan error, limit time.Duration) {
	t.Helper()
	limit = n.Stretch(limit)
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("the writer on %s ended well, although the volume was taken", n.Name)
		}
	case <-time.After(limit):
		t.Errorf("the writer on %s goes on %v after the volume was taken", n.Name, limit)
	}
}

// clean waits until a node has nothing of a volume any more: no mount, no device.
func (n *node) clean(volume string, limit time.Duration) error {
	return n.within(limit, func() error {
		left, err := n.Sh(quick, "grep "+volume+" /proc/mounts; grep -H . /sys/bus/rbd/devices/*/name 2>/dev/null | grep "+volume+"; true")
		if err == nil && left != "" {
			err = fmt.Errorf("%s still has %s", n.Name, left)
		}
		return err
	})
}
