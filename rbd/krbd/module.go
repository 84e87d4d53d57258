package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// ErrLate tells that the kernel's module is on its way: nothing follows yet for
// whether the kernel has it. A busy node takes many seconds to load it.
var ErrLate = errors.New("the module rbd is still being loaded")

// Present tells whether the kernel has rbd now; it loads nothing.
func Present() bool {
	_, err := os.Stat(sysfs)
	return err == nil
}

// Available tells whether the kernel has rbd, loading the module if it can. ErrLate
// if that has not ended when the context does, or was ended by somebody else; it may
// then be asked again.
func Available(ctx context.Context) error { return modprobes.available(ctx, sysfs) }

var modprobes loader

// loader runs modprobe, once for all who ask.
type loader struct {
	mu    sync.Mutex
	under *load // way; nil = none
}

type load struct {
	done chan struct{}
	out  []byte
	err  error
}

func (l *loader) available(ctx context.Context, sysfs string) error {
	there := func() bool { _, err := os.Stat(sysfs); return err == nil }
	if there() {
		return nil
	}
	m := l.begin()
	select {
	case <-m.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: modprobe rbd has not ended in time", ErrLate)
	}
	said := strings.Join(strings.Fields(string(m.out)), " ")
	var exit *exec.ExitError
	switch {
	case errors.As(m.err, &exit) && !exit.Exited():
		return fmt.Errorf("%w: modprobe rbd was stopped: %w", ErrLate, m.err)
	case m.err != nil:
		return fmt.Errorf("the kernel has no rbd, and modprobe rbd: %w: %s", m.err, said)
	case !there():
		return fmt.Errorf("modprobe rbd went well, and yet there is no %s: is /sys of the host there?", filepath.Clean(sysfs))
	}
	return nil
}

// begin starts modprobe, if it is not under way. It is not stopped by who waits no
// longer: the kernel would go on, and it would have to be asked once more.
func (l *loader) begin() *load {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.under != nil {
		return l.under
	}
	m := &load{done: make(chan struct{})}
	l.under = m
	go func() {
		m.out, m.err = exec.Command("modprobe", "rbd", "single_major=Y").CombinedOutput() //nolint:noctx // it outlives who asks
		l.mu.Lock()
		defer l.mu.Unlock()
		l.under = nil
		close(m.done)
	}()
	return m
}
