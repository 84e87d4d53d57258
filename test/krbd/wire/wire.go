// Package wire is what the tests and the mapper in a guest say to each other.
package wire

import (
	"errors"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Request asks for one call.
type Request struct {
	Op     string
	Limit  time.Duration
	Mapper int // each number is a mapper of its own, as a plugin just started has it

	Conf, User, Keyring, Pool, Namespace, MSMode string // of the mapper

	Pause   time.Duration // of the map, before the kernel is asked
	Image   backend.Image
	Mode    backend.OpenMode
	Mapping backend.Mapping
	Device  string
	Text    string // a key, or what is written
}

// Answer is what came of it.
type Answer struct {
	Mapping  backend.Mapping
	Mappings []backend.Mapping
	Size     uint64
	Text     string
	Error    string
	Kind     int // which of the driver's sentinels, from 1
}

var kinds = []error{
	backend.ErrNotFound, backend.ErrExists, backend.ErrInvalid, backend.ErrBusy, backend.ErrInUse, backend.ErrConflict, backend.ErrUnavailable,
}

// SetError puts an error into the answer.
func (a *Answer) SetError(err error) {
	if err == nil {
		return
	}
	a.Error = err.Error()
	for i, kind := range kinds {
		if errors.Is(err, kind) {
			a.Kind = i + 1
		}
	}
}

// Err takes it out again; it is of the same kind.
func (a *Answer) Err() error {
	if a.Error == "" {
		return nil
	}
	if a.Kind == 0 {
		return errors.New(a.Error)
	}
	return remoteError{a.Error, kinds[a.Kind-1]}
}

type remoteError struct {
	text string
	kind error
}

func (e remoteError) Error() string { return e.text }
func (e remoteError) Unwrap() error { return e.kind }
