package backendtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Node is a node on which mappers are tested.
type Node struct {
	// Mapper returns the mapper as a plugin just started would have it: nothing
	// in memory, the kernel as it is.
	Mapper func() backend.Mapper
	// Hold opens a device as a mount does, exclusively, until release is called.
	Hold func(t *testing.T, device string) (release func())
	// Write and Read go to the beginning of a device, past all caches of the
	// kernel; Write has returned when the data is safe. The text has one length.
	Write func(device, text string) error
	Read  func(device string) (string, error)
}

// Mapper is the contract of backend.Mapper: two nodes on one pool. Snapshot makes
// one of an image.
func Mapper(t *testing.T, ceph Ceph, snapshot func(t *testing.T, image, name string), one, two Node) {
	const hello, world = "ext4 hello", "ext4 world"
	t.Run("what is mapped has a device, and its client is a watcher", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		image := Create(t, ceph, "first", 8*mib)
		got, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		if got.Name != image.Name || got.ID != image.ID || got.Device == "" || !got.Alive || got.Mode != backend.ReadWrite {
			t.Errorf("got %+v", got)
		}
		if w := Watchers(t, ceph, image.Name); !slices.Equal(w, []string{got.Addr}) {
			t.Errorf("watchers %v, the mapping's client is %s", w, got.Addr)
		}
		again, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		if again != got {
			t.Errorf("mapped again: %+v, was %+v", again, got)
		}
		all, err := one.Mapper().Mappings(ctx) // as after a restart
		must(t, err)
		if !slices.Contains(all, got) {
			t.Errorf("mappings: %+v, want %+v", all, got)
		}
		must(t, m.Unmap(ctx, image.ID))
		must(t, m.Unmap(ctx, image.ID))
		if all, err = m.Mappings(ctx); err != nil || len(all) != 0 {
			t.Errorf("mappings after unmap: %v, %v", all, err)
		}
		if w := Watchers(t, ceph, image.Name); len(w) != 0 {
			t.Errorf("watchers after unmap: %v", w)
		}
	})
	t.Run("what one node wrote the next one reads", func(t *testing.T) {
		ctx, m, n := testContext(t), one.Mapper(), two.Mapper()
		image := Create(t, ceph, "moves", 8*mib)
		a, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		must(t, one.Write(a.Device, hello))
		must(t, m.Unmap(ctx, image.ID))
		b, err := n.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		if text, err := two.Read(b.Device); err != nil || text != hello {
			t.Errorf("read %q, %v", text, err)
		}
		if a.Addr == b.Addr {
			t.Error("a client's address came again")
		}
		must(t, n.Unmap(ctx, image.ID))
	})
	t.Run("a device that is held is not unmapped", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		image := Create(t, ceph, "held", 8*mib)
		got, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		release := one.Hold(t, got.Device)
		want(t, m.Unmap(ctx, image.ID), backend.ErrBusy)
		must(t, one.Write(got.Device, hello))
		want(t, one.Mapper().Unmap(ctx, image.ID), backend.ErrBusy)
		release()
		must(t, m.Unmap(ctx, image.ID))
	})
	t.Run("a read-only mapping cannot be written and is no watcher", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		image := Create(t, ceph, "readonly", 8*mib)
		got, err := m.Map(ctx, image, backend.ReadOnly)
		must(t, err)
		if err := one.Write(got.Device, hello); err == nil {
			t.Error("it was written")
		}
		if all, err := one.Mapper().Mappings(ctx); err != nil || got.Mode != backend.ReadOnly || !slices.Contains(all, got) {
			t.Errorf("mappings: %+v, %v; want %+v", all, err, got)
		}
		if w := Watchers(t, ceph, image.Name); len(w) != 0 {
			t.Errorf("watchers: %v", w)
		}
		must(t, m.Unmap(ctx, image.ID))
	})
	t.Run("a snapshot is mapped beside its image, read-only, on every node", func(t *testing.T) {
		ctx, m, n := testContext(t), one.Mapper(), two.Mapper()
		image := Create(t, ceph, "snapped", 8*mib)
		a, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		must(t, one.Write(a.Device, hello))
		snapshot(t, image.Name, "monday")
		must(t, one.Write(a.Device, world))
		image.Snap = "monday"
		for i, node := range []Node{one, two} {
			s, err := []backend.Mapper{m, n}[i].Map(ctx, image, backend.ReadWrite)
			must(t, err)
			if s.ID != a.ID || s.Snap != "monday" || i == 0 && s.Device == a.Device || s.Addr == a.Addr {
				t.Errorf("got %+v beside %+v", s, a)
			}
			if text, err := node.Read(s.Device); err != nil || text != hello {
				t.Errorf("the snapshot reads %q, %v", text, err)
			}
			if err := node.Write(s.Device, world); err == nil {
				t.Error("the snapshot was written")
			}
			if all, err := node.Mapper().Mappings(ctx); err != nil || !slices.Contains(all, s) {
				t.Errorf("mappings: %+v, %v", all, err)
			}
		}
		if text, err := one.Read(a.Device); err != nil || text != world {
			t.Errorf("the image reads %q, %v", text, err)
		}
		if w := Watchers(t, ceph, image.Name); !slices.Equal(w, []string{a.Addr}) {
			t.Errorf("watchers: %v, want %s", w, a.Addr)
		}
		must(t, m.Unmap(ctx, a.Key()))
		must(t, m.Unmap(ctx, image.Key()))
		must(t, n.Unmap(ctx, image.Key()))
		if all, err := m.Mappings(ctx); err != nil || len(all) != 0 {
			t.Errorf("mappings after unmap: %v, %v", all, err)
		}
	})
	t.Run("a device becomes as large as its image", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		image := Create(t, ceph, "grows", 8*mib)
		got, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		size, err := m.Size(ctx, got)
		must(t, err)
		if size != 8*mib {
			t.Errorf("size %d", size)
		}
		must(t, opened(t, ceph, image.Name, backend.ReadWrite).Resize(ctx, 16*mib))
		for size != 16*mib && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			size, err = m.Size(ctx, got)
			must(t, err)
		}
		must(t, one.Write(got.Device, hello))
		must(t, m.Unmap(ctx, image.ID))
	})
	t.Run("a fenced mapping cannot write, and can be dropped while it is held", func(t *testing.T) {
		ctx, m, n := testContext(t), one.Mapper(), two.Mapper()
		image := Create(t, ceph, "fenced", 8*mib)
		a, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		must(t, one.Write(a.Device, hello))
		must(t, ceph.Fence(ctx, a.Addr))
		if err := one.Write(a.Device, world); err == nil {
			t.Error("it wrote after the fence")
		}
		b, err := n.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		if text, err := two.Read(b.Device); err != nil || text != hello {
			t.Errorf("after the fence the next node read %q, %v", text, err)
		}
		release := one.Hold(t, a.Device)
		must(t, m.ForceUnmap(ctx, image.ID))
		must(t, m.ForceUnmap(ctx, image.ID))
		release()
		if all, err := m.Mappings(ctx); err != nil || len(all) != 0 {
			t.Errorf("mappings after drop: %v, %v", all, err)
		}
		must(t, n.Unmap(ctx, image.ID))
	})
	t.Run("after a drop nothing can be written, and the image can be mapped", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		image := Create(t, ceph, "dropped", 8*mib)
		got, err := m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		release := one.Hold(t, got.Device)
		must(t, m.ForceUnmap(ctx, image.ID))
		if err := one.Write(got.Device, hello); err == nil {
			t.Error("it wrote after the drop")
		}
		release()
		_, err = m.Map(ctx, image, backend.ReadWrite)
		must(t, err)
		must(t, m.Unmap(ctx, image.ID))
	})
	t.Run("an image that is not there leaves nothing", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		if _, err := m.Map(ctx, backend.Image{Name: "missing", ID: "abc", Size: 8 * mib}, backend.ReadWrite); err == nil {
			t.Error("it was mapped")
		}
		if all, err := m.Mappings(ctx); err != nil || len(all) != 0 {
			t.Errorf("mappings: %v, %v", all, err)
		}
	})
	t.Run("images are mapped side by side", func(t *testing.T) {
		ctx, m := testContext(t), one.Mapper()
		var wg sync.WaitGroup
		for i := range 4 {
			image := Create(t, ceph, fmt.Sprintf("many%d", i), 8*mib)
			wg.Go(func() {
				got, err := m.Map(ctx, image, backend.ReadWrite)
				if err == nil {
					err = one.Write(got.Device, hello)
				}
				if err == nil {
					err = m.Unmap(ctx, image.ID)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// Encrypted is the contract of backend.Mapper for encrypted images, which cannot be
// had everywhere: the kernel's client needs dm-crypt.
func Encrypted(t *testing.T, ceph Ceph, one, two Node, formats ...string) {
	const hello = "ext4 hello"
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*timeout) // to open one is slow on purpose
			defer cancel()
			m := one.Mapper()
			image := Create(t, ceph, format, 64*mib)
			key := backend.Encryption{Format: format, Passphrase: []byte("open sesame")}
			h := opened(t, ceph, format, backend.ReadWrite)
			must(t, h.Encrypt(ctx, key))
			must(t, h.Close(ctx))
			wrong := image
			wrong.Encryption = &backend.Encryption{Format: format, Passphrase: []byte("open barley")}
			if got, err := m.Map(ctx, wrong, backend.ReadWrite); err == nil || !strings.Contains(err.Error(), "passphrase does not open") {
				t.Errorf("with a wrong passphrase: %+v, %v", got, err)
			}
			if all, err := m.Mappings(ctx); err != nil || len(all) != 0 {
				t.Errorf("mappings after a wrong passphrase: %v, %v", all, err)
			}
			image.Encryption = &key
			got, err := m.Map(ctx, image, backend.ReadWrite)
			must(t, err)
			must(t, one.Write(got.Device, hello))
			again, err := m.Map(ctx, image, backend.ReadWrite)
			must(t, err)
			if all, err := one.Mapper().Mappings(ctx); err != nil || again != got || !slices.Contains(all, got) {
				t.Errorf("mapped again: %+v, was %+v; mappings: %v, %v", again, got, all, err)
			}
			release := one.Hold(t, got.Device)
			want(t, one.Mapper().Unmap(ctx, image.ID), backend.ErrBusy)
			release()
			must(t, m.Unmap(ctx, image.ID))
			raw, err := m.Map(ctx, backend.Image{Name: image.Name, ID: image.ID, Size: image.Size, Features: image.Features}, backend.ReadOnly)
			must(t, err)
			if text, err := one.Read(raw.Device); err != nil || strings.Contains(text, hello) {
				t.Errorf("without the passphrase it reads %q, %v", text, err)
			}
			must(t, m.Unmap(ctx, image.ID))
			n := two.Mapper()
			b, err := n.Map(ctx, image, backend.ReadWrite)
			must(t, err)
			if text, err := two.Read(b.Device); err != nil || text != hello {
				t.Errorf("the other node read %q, %v", text, err)
			}
			must(t, n.Unmap(ctx, image.ID))
		})
	}
}
