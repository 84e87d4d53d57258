package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// attach puts a loop device on the image's file.
func (m *Mapper) attach(ctx context.Context, found backend.Mapping, mode backend.OpenMode) (string, error) {
	type result struct {
		dev *os.File
		err error
	}
	done := make(chan result, 1)
	go func() { // opening a file of a FUSE filesystem takes as long as its server
		dev, err := attachLoop(configureLoop, filepath.Join(m.mountpoint(found.Key()), fileName(found.Addr)), mode)
		done <- result{dev, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return "", r.err
		}
		m.keep(found.Key(), r.dev)
		return r.dev.Name(), nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.dev.Close() // autoclear
			}
		}()
		return "", fmt.Errorf("attach a loop device: %w", ctx.Err())
	}
}

// hold opens the loop device of a mapping that an earlier process made.
func (m *Mapper) hold(key, device string) error {
	m.mu.Lock()
	held := m.held[key]
	m.mu.Unlock()
	if held != nil && held.Name() == device {
		return nil
	}
	dev, err := os.OpenFile(device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		dev, err = os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		m.keep(key, dev)
	}
	return err
}

func (m *Mapper) keep(key string, dev *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == nil {
		m.held = map[string]*os.File{}
	}
	if old := m.held[key]; old != nil {
		_ = old.Close()
	}
	m.held[key] = dev
}

func (m *Mapper) release(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dev := m.held[key]; dev != nil {
		_ = dev.Close()
		delete(m.held, key)
	}
}

// Size looks at the file, which is as large as the image; see backend.Mapper. One at a
// time does: a server may have stopped.
func (m *Mapper) Size(ctx context.Context, found backend.Mapping) (size uint64, err error) {
	done := make(chan struct{})
	for before := m.ask(found.Addr, done); before != nil; before = m.ask(found.Addr, done) {
		select {
		case <-before:
		case <-ctx.Done():
			return 0, fmt.Errorf("size of %s: %w: its image server does not answer", found.Device, backend.ErrUnavailable)
		}
	}
	answer := make(chan uint64, 1)
	err = backend.Within(ctx, "size of "+found.Device, func() error {
		defer func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.asked, found.Addr)
			close(done)
		}()
		size, err := growLoop(found.Device, filepath.Join(m.mountpoint(found.Key()), fileName(found.Addr)))
		answer <- size
		return err
	})
	if err != nil {
		return 0, err
	}
	return <-answer, nil
}

// ask takes the turn to ask a server for its size, or returns who has it.
func (m *Mapper) ask(addr string, done chan struct{}) (before chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if before = m.asked[addr]; before != nil {
		return before
	}
	if m.asked == nil {
		m.asked = map[string]chan struct{}{}
	}
	m.asked[addr] = done
	return nil
}
