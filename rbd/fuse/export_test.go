package fuse

import (
	"testing"
	"time"
)

// SetCapacity has the kernel look at the size of a loop device's file.
var SetCapacity = setCapacity

// Impatient gives image servers a second to close their image, for one test.
func Impatient(t *testing.T) {
	before := closing
	closing = time.Second
	t.Cleanup(func() { closing = before })
}
