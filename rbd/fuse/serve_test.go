package fuse

import (
	"context"
	"syscall"
	"testing"

	"github.com/ceph/go-ceph/rbd"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A server that knew the size once tells that one when Ceph does not answer; before that
// it has nothing to tell.
func TestASizeThatCephDoesNotTell(t *testing.T) {
	i := &image{img: rbd.GetImage(nil, "v")} // not open, so each question is an error
	var out fuse.AttrOut
	if errno := i.Getattr(context.Background(), nil, &out); errno != syscall.EIO {
		t.Errorf("never told: %v", errno)
	}
	i.size.Store(1 << 30)
	if errno := i.Getattr(context.Background(), nil, &out); errno != fs.OK || out.Size != 1<<30 || out.Blocks != 1<<30/512 {
		t.Errorf("told before: %v, %+v", errno, out)
	}
}
