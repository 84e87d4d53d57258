package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

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
	case !backend.ValidName(e.volume):
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
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, backend.ErrInUse) && !errors.Is(err, backend.ErrUnavailable) {
		err = fmt.Errorf("%w: no time left for this request; is ceph slow (ceph -s)? Try again", err)
	}
	return &opError{op: op, volume: volume, err: err}
}
