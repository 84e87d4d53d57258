package driver

import (
	"context"
	"fmt"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// locks lets one operation at a time work on a volume. Waiting ends with the
// context; different volumes never wait for each other.
type locks struct {
	mu   sync.Mutex
	busy map[string]*volumeLock
}

type volumeLock struct {
	free    chan struct{} // holds a token while nobody works on the volume
	op      string        // what the holder does, for whoever waits in vain
	waiters int           // the holder included; the last one out forgets the lock
}

func (l *locks) lock(ctx context.Context, volume, op string) (unlock func(), err error) {
	l.mu.Lock()
	if l.busy == nil {
		l.busy = map[string]*volumeLock{}
	}
	v := l.busy[volume]
	if v == nil {
		v = &volumeLock{free: make(chan struct{}, 1)}
		v.free <- struct{}{}
		l.busy[volume] = v
	}
	v.waiters++
	l.mu.Unlock()

	select {
	case <-v.free:
		l.mu.Lock()
		v.op = op
		l.mu.Unlock()
		return func() {
			l.mu.Lock()
			v.op = ""
			l.mu.Unlock()
			v.free <- struct{}{}
			l.leave(volume, v)
		}, nil
	case <-ctx.Done():
		l.mu.Lock()
		holder := v.op
		l.mu.Unlock()
		l.leave(volume, v)
		if holder == "" { // free, and no time left to use it
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: another %s of the same volume is still under way on this node", backend.ErrBusy, holder)
	}
}

func (l *locks) leave(volume string, v *volumeLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.waiters--; v.waiters == 0 {
		delete(l.busy, volume)
	}
}
