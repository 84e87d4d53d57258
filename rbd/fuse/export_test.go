package fuse

import (
	"testing"
	"time"
)

// Impatient gives image servers a second to close their image, for one test.
func Impatient(t *testing.T) {
	before := closing
	closing = time.Second
	t.Cleanup(func() { closing = before })
}
