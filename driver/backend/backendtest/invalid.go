package backendtest

import (
	"errors"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Invalid fails the test unless err is exactly this line, and ErrInvalid.
func Invalid(t *testing.T, err error, line string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want: %s", line)
	}
	if err.Error() != line {
		t.Errorf("error\n got: %s\nwant: %s", err, line)
	}
	OneInvalidLine(t, err)
}

// OneInvalidLine is what holds for every refusal.
func OneInvalidLine(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("not ErrInvalid: %v", err)
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("more than one line: %q", err)
	}
}
