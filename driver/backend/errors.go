package backend

import (
	"errors"
	"fmt"
)

// Sentinels. The packages at the edges (rbd, rbd/krbd, rbd/fuse, driver/fsys)
// wrap what they meet in one of these; package driver asks with
// errors.Is and never reads a text.
var (
	// ErrNotFound: there is no such image, record, snapshot or guard.
	ErrNotFound = errors.New("not found")
	// ErrNoVolume: there is no image of the volume's name. It is an ErrNotFound that
	// only Images.Open says, as whoever hears it forgets the volume: an ENOENT of any
	// later call is about something else.
	ErrNoVolume error = marked{"not found", ErrNotFound}
	// ErrUnusable: there is an image of the volume's name, and it cannot be opened as it is.
	ErrUnusable = errors.New("the image cannot be used as it is")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrAmbiguous: two pools have a volume of the name, so it cannot be said which is meant.
	ErrAmbiguous = errors.New("there are two volumes of this name")
	// ErrInvalid: the request itself is wrong; the text says what is allowed.
	ErrInvalid = errors.New("invalid")
	// ErrBusy: this node still uses it (a mount, an open device).
	ErrBusy = errors.New("busy")
	// ErrInUse: another node or another client of Ceph uses it.
	ErrInUse = errors.New("in use")
	// ErrConflict: somebody else has changed the guard since it was read.
	ErrConflict = errors.New("guard lost")
	// ErrUnavailable: Ceph does not answer. Nothing is known about the volume;
	// in particular it must not be called missing.
	ErrUnavailable = errors.New("ceph cannot be asked")
	// ErrDenied: the key may not do this. It is an ErrUnavailable, as a key that may do
	// nothing at all is a Ceph that is away; Images.Ping tells which.
	ErrDenied error = marked{"ceph refuses this key", ErrUnavailable}
	// ErrOverloaded: the request had no turn among those of this node. It is an
	// ErrUnavailable, but says nothing of Ceph.
	ErrOverloaded error = marked{"too many requests of this node are under way", ErrUnavailable}
	// ErrNotPropagated: what this plugin mounts does not reach the host's containers.
	ErrNotPropagated = errors.New("the mount does not reach the host, so containers would write to the host's own disk")
	// ErrUnexpectedContent: what the device holds is not what this operation may touch.
	ErrUnexpectedContent = errors.New("unexpected content")
)

// marked is a sentinel that is also another one.
type marked struct {
	text string
	is   error
}

func (m marked) Error() string { return m.text }
func (m marked) Unwrap() error { return m.is }

// Invalidf is an ErrInvalid with a text, which says what is allowed.
func Invalidf(format string, args ...any) error {
	return fmt.Errorf("%w %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Also adds what went wrong while a failure was being undone, in one line.
func Also(err error, what string, second error) error {
	if second == nil {
		return err
	}
	if err == nil {
		return fmt.Errorf("%s: %w", what, second)
	}
	return fmt.Errorf("%w; and then %s: %w", err, what, second)
}
