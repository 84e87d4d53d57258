package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Kinds of faults. Whatever a process that dies leaves half done, die-before and
// die-after tell from each other; die-within is at a random moment of the step.
var Kinds = []string{"die-before", "die-within", "die-after", "fail", "hang"}

// ErrInjected is what a step that fails says.
var ErrInjected = errors.New("this step was made to fail")

// Layer counts the steps of requests, and one of them goes wrong.
type Layer struct {
	kind  string
	at    int64
	steps atomic.Int64
	log   *os.File
}

// FromEnvironment reads FAULT and FAULT_LOG by way of getenv.
func FromEnvironment(getenv func(string) string) (*Layer, error) {
	l := &Layer{}
	if fault := getenv("FAULT"); fault != "" {
		if _, err := fmt.Sscan(fault, &l.kind, &l.at); err != nil {
			return nil, fmt.Errorf("FAULT=%q: %w", fault, err)
		}
	}
	if path := getenv("FAULT_LOG"); path != "" {
		var err error
		if l.log, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// within is about as long as a call of librbd that changes something takes.
const within = 40 * time.Millisecond

// hang is longer than who asks in a test has patience.
const hang = 5 * time.Second

// Step is called for each step, named "Interface.Method", and is to call it. The arguments are
// those after the context.
type Step func(ctx context.Context, name string, args []any, call func() error) error

// Wrap puts a step between the driver and each of its parts.
func Wrap(c driver.Config, step Step) driver.Config {
	c.Images, c.Records, c.Fences = images{c.Images, step}, records{c.Records, step}, fences{c.Fences, step}
	c.Secrets = secrets{c.Secrets, step}
	c.Mapper, c.Filesystem = mapper{c.Mapper, step}, filesystem{c.Filesystem, step}
	return c
}

// Step lets one of them go wrong. What the plugin does by itself, between requests, comes at any
// time and is not counted: package net/http marks the context of a request.
func (l *Layer) Step(ctx context.Context, name string, _ []any, call func() error) error {
	if ctx.Value(http.ServerContextKey) == nil {
		return call()
	}
	n := l.steps.Add(1)
	if l.log != nil {
		_, _ = fmt.Fprintln(l.log, n, name)
	}
	if n != l.at {
		return call()
	}
	switch l.kind {
	case "die-before":
		die()
	case "die-after":
		_ = call()
		die()
	case "die-within": // librbd's calls have several steps
		time.AfterFunc(rand.N(within), die)
		_ = call()
		die()
	case "fail":
		return fmt.Errorf("%s: %w", name, ErrInjected)
	case "hang":
		select {
		case <-ctx.Done():
		case <-time.After(hang): // of a step that outlives its request
		}
		return fmt.Errorf("%s: %w: it hung", name, backend.ErrUnavailable)
	}
	return call()
}

// die leaves nobody the time to clean up.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
