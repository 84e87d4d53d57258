package krbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

const sysfs = "/sys/bus/rbd"

// Cluster tells what the kernel's client needs to know; rbd.Pool does.
type Cluster interface {
	Kernel(ctx context.Context) (rbd.Kernel, error)
	// FSID is the id of the cluster: another may have a pool of the same name.
	FSID(ctx context.Context) (string, error)
}

// Mapper maps the images of one pool. Its methods may be called at the same
// time.
type Mapper struct {
	Ceph      Cluster
	Pool      string
	Namespace string
	MSMode    string // one of MSModes; "" = what kernel and monitors can do
	Sys       string // "" = /sys/bus/rbd
	Block     string // "" = /sys/block
	Kmsg      string // "" = /dev/kmsg

	mu       sync.Mutex
	underway map[string]*underway // by key: calls that have not ended, even if their requests have
	grown    map[string]uint64    // by client address, as a number comes again: the size for which the plain text of an encrypted device was made larger
}

var _ backend.Mapper = (*Mapper)(nil)

func or(path, otherwise string) string {
	if path == "" {
		return otherwise
	}
	return path
}

func (m *Mapper) sys(path ...string) string {
	return filepath.Join(append([]string{or(m.Sys, sysfs)}, path...)...)
}

// Map writes to sysfs; see backend.Mapper.
func (m *Mapper) Map(ctx context.Context, image backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	if image.Snap != "" {
		mode = backend.ReadOnly
	}
	for {
		_, mapped, err := m.find(ctx, image.Key())
		var call order
		if err == nil && !mapped {
			call, err = m.prepare(ctx, image, mode)
		}
		if err != nil {
			return backend.Mapping{}, err
		}
		answer := make(chan device, 1)
		err = m.alone(ctx, image.Key(), "map in the kernel", func(u *underway) error {
			found, ok, err := m.find(ctx, image.Key())
			if err == nil && !ok && !mapped {
				found, err = m.add(ctx, image, call)
			}
			if err == nil && found.number != "" {
				u.at("open the encrypted image (cryptsetup)")
				if err = m.unlock(ctx, &found, image.Encryption); err != nil && !ok {
					u.at("unmap in the kernel")
					err = errors.Join(err, m.removeDevice(found, ""))
				}
			}
			answer <- found
			return err
		})
		if err != nil {
			return backend.Mapping{}, err
		}
		if found := <-answer; found.number != "" {
			return found.Mapping, nil
		} // else it was there, but on its way out
	}
}

// order is what the kernel is told, and with which key.
type order struct {
	line string
	rbd.Kernel
}

// prepare finds out all that the kernel has to be told, and whether it can.
func (m *Mapper) prepare(ctx context.Context, image backend.Image, mode backend.OpenMode) (order, error) {
	if err := m.checkFeatures(image.Name, image.Features); err != nil {
		return order{}, err
	}
	if mode == backend.ReadWrite && !slices.Contains(image.Features, backend.FeatureLock) {
		// With it the kernel waits for the newest OSD map, and so for the fence
		// of a dead holder, before it lets anything through.
		return order{}, fmt.Errorf("%w: the image lacks the feature exclusive-lock; switch it on while nobody uses it: "+
			"rbd feature enable %s exclusive-lock", backend.ErrInvalid, m.spec(image.Name))
	}
	k, err := m.Ceph.Kernel(ctx)
	if err != nil {
		return order{}, err
	}
	line, err := m.line(k, image, mode, kernelRelease())
	return order{line, k}, err
}

// add has the kernel map an image.
func (m *Mapper) add(ctx context.Context, image backend.Image, o order) (device, error) {
	if ctx.Err() != nil { // the caller has gone, and would not know of the device
		return device{}, ctx.Err()
	}
	log := m.listen()
	defer log.close()
	err := withKey(o.Kernel, func() error {
		if err := m.write("add", o.line); err != nil {
			return explain(err, log.said())
		}
		return nil
	})
	if err != nil {
		return device{}, err
	}
	found, ok, err := m.find(context.WithoutCancel(ctx), image.Key())
	if err == nil && !ok {
		err = fmt.Errorf("%w: the image was replaced meanwhile by another that is called %s, too", backend.ErrInUse, image.Name)
	}
	return found, err
}

// spec names an image as Ceph's tools do.
func (m *Mapper) spec(image string) string {
	if m.Namespace == "" {
		return m.Pool + "/" + image
	}
	return m.Pool + "/" + m.Namespace + "/" + image
}

// write uses the files of the single major number where the module has it.
func (m *Mapper) write(what, text string) error {
	path := m.sys(what + "_single_major")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		path = m.sys(what)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	_, err = unix.Write(int(file.Fd()), []byte(text)) // in one write, or not at all
	return err
}

// Unmap removes the device; see backend.Mapper.
func (m *Mapper) Unmap(ctx context.Context, key string) error { return m.remove(ctx, key, "") }

// ForceUnmap removes the device whoever has it open; see backend.Mapper. The kernel
// waits for requests under way even then (drivers/block/rbd.c, do_rbd_remove
// freezes the queue): those of a fenced client end at once, others not before
// the cluster answers.
func (m *Mapper) ForceUnmap(ctx context.Context, key string) error {
	err := m.remove(ctx, key, "")
	if errors.Is(err, backend.ErrBusy) {
		err = m.remove(ctx, key, " force")
	}
	return err
}

func (m *Mapper) remove(ctx context.Context, key, force string) error {
	const unmap = "unmap in the kernel"
	return m.alone(ctx, key, unmap, func(u *underway) error {
		found, ok, err := m.find(ctx, key)
		if err != nil || !ok {
			return err
		}
		u.at("close the encrypted image (cryptsetup)")
		if err := m.lock(ctx, found, force != ""); err != nil {
			return err
		}
		u.at(unmap)
		if err := m.removeDevice(found, force); err != nil {
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.grown, found.Addr)
		return nil
	})
}

func (m *Mapper) removeDevice(found device, force string) error {
	err := m.write("remove", found.number+force)
	switch {
	case errors.Is(err, unix.ENOENT): // gone since
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is %w: a container or another process has it open", found.Device, backend.ErrBusy)
	case errors.Is(err, unix.EINPROGRESS): // asked for by a plugin that was killed
		return fmt.Errorf("unmap %s: %w: the kernel is at it, and waits for Ceph", found.Device, backend.ErrUnavailable)
	case err != nil:
		return fmt.Errorf("unmap %s: %w", found.Device, err)
	}
	return nil
}
