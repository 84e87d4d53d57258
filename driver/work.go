package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// longest is how long a step that outlives its request may take.
const longest = 24 * time.Hour

// rest is the time for what follows such a step.
const rest = 100 * time.Second

// works are what is under way on volumes of this node, by volume.
type works struct {
	mu sync.Mutex
	m  map[string]*work
}

// work is what is done on a volume for a request, and its context: it ends with the
// request, unless a step that takes long is under way (takesLong). That goes on, under
// the guard and the volume's turn, and what has to follow it gets time of its own.
type work struct {
	context.Context // the request's
	volume          string
	done            chan struct{}
	goesOn          chan struct{} // closed when the request has ended, and the work has not

	mu       sync.Mutex
	err      error // why it is done
	step     string
	since    time.Time
	progress string
	rest     *time.Timer
}

type workKey struct{}

// Deadline is the request's, as long as somebody waits for it.
func (w *work) Deadline() (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alone() {
		return time.Time{}, false
	}
	return w.Context.Deadline()
}

// Done is closed with the request, or when the time after it is up.
func (w *work) Done() <-chan struct{} { return w.done }

// Err tells why Done is closed.
func (w *work) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Value finds the work itself, for takesLong.
func (w *work) Value(key any) any {
	if key == (workKey{}) {
		return w
	}
	return w.Context.Value(key)
}

// finish closes Done; w.mu is held.
func (w *work) finish(err error) {
	if w.err == nil {
		w.err = err
		close(w.done)
	}
}

// left notes that the request has ended.
func (w *work) left() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.step == "" {
		w.finish(w.Context.Err())
		return
	}
	close(w.goesOn)
}

// alone tells whether nobody waits for the end any more.
func (w *work) alone() bool {
	select {
	case <-w.goesOn:
		return true
	default:
		return false
	}
}

// String tells what is under way, "" if nothing is that takes long.
func (w *work) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.step == "" {
		return ""
	}
	text := fmt.Sprintf("%s, for %v now", w.step, time.Since(w.since).Round(time.Second))
	if w.progress != "" {
		text += ", " + w.progress
	}
	return text
}

// Progress notes how far a step that takes long has come, for who asks and for the
// log. It does nothing where no such step is under way.
func Progress(ctx context.Context, text string) {
	w, ok := ctx.Value(workKey{}).(*work)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress = text
}

// outlast does what was asked for of a volume whose turn is taken, and gives the turn
// back. When the request ends in the midst of a step that takes long it returns, and
// says that this goes on. It is for do to look, by unawaited, whether anybody will use what
// it has made.
func (d *Driver) outlast(ctx context.Context, volume string, unlock func(), do func(context.Context) (string, error)) (string, error) {
	w := &work{Context: ctx, volume: volume, done: make(chan struct{}), goesOn: make(chan struct{})}
	stop := context.AfterFunc(ctx, w.left)
	type result struct {
		path string
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		defer unlock()
		defer stop()
		is := result{err: errors.New("it was cut short")} // by runtime.Goexit, say
		defer func() { ended <- is }()
		is.err = backend.Survive(func() (err error) {
			is.path, err = do(w)
			return err
		})
		switch log := d.log.WithField("volume", volume); {
		case !w.alone():
		case is.err != nil:
			log.Errorf("what outlived its request has failed: %v", is.err)
		default:
			log.Info("what outlived its request is done")
		}
	}()
	select {
	case is := <-ended:
		return is.path, is.err
	case <-w.goesOn:
		if w.String() == "" { // the step has ended just now
			return "", fmt.Errorf("%w: the last steps are under way; ask again", backend.ErrBusy)
		}
		return "", fmt.Errorf("%w: %v; it goes on, and the next request for the volume waits for its end", backend.ErrBusy, w)
	}
}

// unawaited tells whether nobody waits any more for the end of what is being done.
func unawaited(ctx context.Context) bool {
	w, ok := ctx.Value(workKey{}).(*work)
	return ok && w.alone()
}

// takesLong does a step that is not to be cut short by the end of its request: done
// again from its beginning by the next one, it would never come to its end.
func (d *Driver) takesLong(ctx context.Context, step string, do func(context.Context) error) error {
	w, ok := ctx.Value(workKey{}).(*work)
	if !ok || !d.beginStep(w, step) {
		return do(ctx)
	}
	defer d.endStep(w)
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(time.Minute):
				d.log.WithField("volume", w.volume).Infof("%v", w)
			}
		}
	}()
	return do(long)
}

// beginStep is false if there is no time left to begin anything.
func (d *Driver) beginStep(w *work, step string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false
	}
	w.step, w.since, w.progress = step, time.Now(), ""
	if w.rest != nil {
		w.rest.Stop()
	}
	d.works.mu.Lock()
	defer d.works.mu.Unlock()
	if d.works.m == nil {
		d.works.m = map[string]*work{}
	}
	d.works.m[w.volume] = w
	return true
}

func (d *Driver) endStep(w *work) {
	d.works.mu.Lock()
	delete(d.works.m, w.volume)
	d.works.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step = ""
	if w.alone() {
		w.rest = time.AfterFunc(rest, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.finish(context.DeadlineExceeded)
		})
	}
}

// underWay tells what takes long on a volume of this node; "" if nothing does.
func (d *Driver) underWay(volume string) string {
	d.works.mu.Lock()
	w := d.works.m[volume]
	d.works.mu.Unlock()
	if w == nil {
		return ""
	}
	return w.String()
}
