package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Sentinels. The packages at the edges (rbd, rbd/krbd, rbd/fuse, driver/fsys)
// wrap what they meet in one of these; the rest of the driver asks with
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
	// ErrTwice: two places have a volume of the name, so it cannot be said which is meant.
	ErrTwice = errors.New("there are two volumes of this name")
	// ErrInvalid: the request itself is wrong; the text says what is allowed.
	ErrInvalid = errors.New("invalid")
	// ErrBusy: this node still uses it (a mount, an open device).
	ErrBusy = errors.New("busy")
	// ErrInUse: another node or another client of Ceph uses it.
	ErrInUse = errors.New("in use")
	// ErrLost: somebody else has changed the guard since it was read.
	ErrLost = errors.New("guard lost")
	// ErrUnavailable: Ceph does not answer. Nothing is known about the volume;
	// in particular it must not be called missing.
	ErrUnavailable = errors.New("ceph cannot be asked")
	// ErrDenied: the key may not do this. It is an ErrUnavailable, as a key that may do
	// nothing at all is a Ceph that is away; Images.Ping tells which.
	ErrDenied error = marked{"ceph refuses this key", ErrUnavailable}
	// ErrOverloaded: the request had no turn among those of this node. It is an
	// ErrUnavailable, but says nothing of Ceph.
	ErrOverloaded error = marked{"too many requests of this node are under way", ErrUnavailable}
	// ErrHidden: what this plugin mounts does not reach the host's containers.
	ErrHidden = errors.New("the mount does not reach the host, so containers would write to the host's own disk")
	// ErrContent: what the device holds is not what this operation may touch.
	ErrContent = errors.New("unexpected content")
)

// marked is a sentinel that is also another one.
type marked struct {
	text string
	is   error
}

func (m marked) Error() string { return m.text }
func (m marked) Unwrap() error { return m.is }

// opError is what a caller sees: one line with the operation, the volume and
// the cause.
type opError struct {
	op, volume string
	err        error
}

func (e *opError) Error() string {
	cause := oneLine(e.err.Error())
	switch {
	case e.volume == "":
		return fmt.Sprintf("%s: %s", e.op, cause)
	case !ValidName(e.volume):
		return fmt.Sprintf("%s volume %.40q: %s", e.op, e.volume, cause)
	}
	return fmt.Sprintf("%s volume %s: %s", e.op, e.volume, cause)
}

// oneLine keeps what somebody sent from filling a log, or from writing lines of
// its own into it. errors.Join writes lines, too.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText*3/4]+" ... "+text[len(text)-maxText/4:], "?")
	}
	return text
}

// maxText is for an error, in bytes.
const maxText = 1500

func (e *opError) Unwrap() error { return e.err }

// wrap names the operation and the volume, once.
func wrap(op, volume string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrInUse) && !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: no time left for this request; is ceph slow (ceph -s)? Try again", err)
	}
	return &opError{op: op, volume: volume, err: err}
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w %s", ErrInvalid, fmt.Sprintf(format, args...))
}
