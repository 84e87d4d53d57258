package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

var gib = map[string]string{"size": "1G"}

// names are new ones in the pool.
func names(prefix string) func() string {
	n, run := 0, time.Now().UnixNano()
	return func() string {
		n++
		return fmt.Sprintf("%s%x-%d", prefix, run, n)
	}
}

func BenchmarkCreate(b *testing.B) {
	b.Run("librbd", func(b *testing.B) { // the image alone
		n, name := newNode(b, testbed.Namespace(b), "one"), names("b")
		for b.Loop() {
			if err := n.pool.Create(b.Context(), backend.ImageSpec{Name: name(), Size: 1 << 30, Features: backendtest.Features}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("volume", func(b *testing.B) {
		n, name := newNode(b, testbed.Namespace(b), "one"), names("b")
		for b.Loop() {
			n.create(name(), gib)
		}
	})
}

// What peers run: rbd create, attach, mkfs, mount; and the other way round.
// Attached is with Ceph's own userspace tool, as there is no kernel client here.
type tools struct {
	tb   testing.TB
	dir  string
	loop string
}

func (c *tools) attachAndMount(image string, mkfs bool) {
	fuse := filepath.Join(c.dir, "fuse")
	if err := os.MkdirAll(fuse, 0o700); err != nil {
		c.tb.Fatal(err)
	}
	testbed.Run(c.tb, "rbd-fuse", "-c", testbed.Conf(), "-p", "rbd", "-r", image, fuse)
	c.loop = strings.TrimSpace(testbed.Run(c.tb, "losetup", "--show", "--find", filepath.Join(fuse, image)))
	if mkfs {
		testbed.Run(c.tb, "mkfs.ext4", "-q", c.loop)
	}
	mnt := filepath.Join(c.dir, "mnt")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		c.tb.Fatal(err)
	}
	testbed.Run(c.tb, "mount", "-o", "noatime", c.loop, mnt)
}

func (c *tools) unmountAndDetach() {
	testbed.Run(c.tb, "umount", filepath.Join(c.dir, "mnt"))
	testbed.Run(c.tb, "losetup", "--detach", c.loop)
	testbed.Run(c.tb, "umount", filepath.Join(c.dir, "fuse"))
}

func BenchmarkCreateAndFirstMount(b *testing.B) {
	b.Run("tools", func(b *testing.B) {
		c, name := &tools{tb: b, dir: b.TempDir()}, names("t")
		for b.Loop() {
			image := name()
			testbed.RBD(b, "create", "--size", "1G", image)
			c.attachAndMount(image, true)
			b.StopTimer()
			c.unmountAndDetach()
			testbed.RBD(b, "rm", "--no-progress", image)
			b.StartTimer()
		}
	})
	b.Run("volume", func(b *testing.B) {
		n, name := newNode(b, testbed.Namespace(b), "one"), names("v")
		for b.Loop() {
			volume := name()
			n.create(volume, gib)
			n.mount(volume)
			b.StopTimer()
			n.unmount(volume)
			b.StartTimer()
		}
	})
}

func BenchmarkWarmMount(b *testing.B) {
	b.Run("tools", func(b *testing.B) {
		c, image := &tools{tb: b, dir: b.TempDir()}, names("t")()
		testbed.RBD(b, "create", "--size", "1G", image)
		c.attachAndMount(image, true)
		c.unmountAndDetach()
		for b.Loop() {
			c.attachAndMount(image, false)
			b.StopTimer()
			c.unmountAndDetach()
			b.StartTimer()
		}
		testbed.RBD(b, "rm", "--no-progress", image)
	})
	b.Run("volume", func(b *testing.B) {
		n := newNode(b, testbed.Namespace(b), "one")
		n.create("v", gib)
		n.mount("v")
		n.unmount("v")
		for b.Loop() {
			n.mount("v")
			b.StopTimer()
			n.unmount("v")
			b.StartTimer()
		}
	})
	b.Run("second container", func(b *testing.B) {
		n := newNode(b, testbed.Namespace(b), "one")
		n.create("v", gib)
		n.mount("v")
		for b.Loop() {
			n.mount("v")
		}
		for range b.N + 1 {
			n.unmount("v")
		}
	})
}

func BenchmarkGet(b *testing.B) {
	n := newNode(b, testbed.Namespace(b), "one")
	n.create("v", gib)
	n.mount("v")
	for b.Loop() {
		if _, err := n.Get(b.Context(), "v"); err != nil {
			b.Fatal(err)
		}
	}
	n.unmount("v")
}
