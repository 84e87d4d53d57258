package memory

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// fill has the filesystem on a device take all of it, and tells whether it did.
func (h *Host) fill(device string, fill bool) (full bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.byDevice(device)
	if d == nil {
		return false, fmt.Errorf("%s: no such device", device)
	}
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	full = d.image.filled == d.size
	if fill {
		d.image.filled = d.size
	}
	return full, nil
}

// NeedsResize compares sizes; see backend.Filesystem.
func (h *Host) NeedsResize(_ context.Context, device, _ string) (bool, error) {
	full, err := h.fill(device, false)
	return err == nil && !full, err
}

// Resize makes a filesystem larger; see backend.Filesystem.
func (h *Host) Resize(_ context.Context, m backend.Mount) error {
	_, err := h.fill(m.Device, true)
	return err
}

// RegenerateUUID has no ids; see backend.Filesystem.
func (h *Host) RegenerateUUID(context.Context, backend.Mount) error { return nil }

// Freeze notes it; see backend.Filesystem.
func (h *Host) Freeze(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frozen[path] = true
	return nil
}

// Thaw notes it; see backend.Filesystem.
func (h *Host) Thaw(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.frozen, path)
	return nil
}

// Frozen tells whether a mount is frozen.
func (h *Host) Frozen(path string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.frozen[path]
}

// Subpath knows every directory but "missing"; see backend.Filesystem.
func (*Host) Subpath(_ context.Context, path, directory string) (string, error) {
	if directory == "missing" {
		return "", fmt.Errorf("%w: the volume has no directory %s", backend.ErrUnexpectedContent, directory)
	}
	return filepath.Join(path, directory), nil
}

// Usage is that of the device; see backend.Filesystem.
func (h *Host) Usage(_ context.Context, path string) (size, used uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.byDevice(h.mounts[path].Device)
	if d == nil {
		return 0, 0, fmt.Errorf("nothing is mounted on %s", path)
	}
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	return d.image.filled, uint64(len(d.image.data)), nil
}

// Probe names what is on a device; see backend.Filesystem.
func (h *Host) Probe(_ context.Context, device string) (string, error) {
	content, err := h.Read(device)
	if err != nil {
		return "", fmt.Errorf("%w: %w", backend.ErrUnexpectedContent, err)
	}
	switch fstype, _, _ := strings.Cut(content, " "); fstype {
	case "ext4", "xfs", "btrfs":
		return fstype, nil
	case "":
		return "", fmt.Errorf("%w: no filesystem is recognised on %s", backend.ErrUnexpectedContent, device)
	}
	return "", fmt.Errorf("%w: %s holds %s", backend.ErrUnexpectedContent, device, content)
}

// Format writes a filesystem; see backend.Filesystem.
func (h *Host) Format(_ context.Context, device, fstype string, options []string, fresh bool) error {
	if len(options) > 0 && options[0] == "--refused" {
		return fmt.Errorf("mkfs.%s: unknown option", fstype)
	}
	h.mu.Lock()
	busy := h.mountOf(device) != ""
	h.mu.Unlock()
	if busy {
		return fmt.Errorf("%s: %w", device, backend.ErrBusy)
	}
	content, err := h.Read(device)
	if err != nil {
		return err
	}
	if fresh && content != "" {
		return fmt.Errorf("%s was called fresh and holds %q", device, content)
	}
	if err := h.Write(device, "remains"); err != nil { // what a crash in the midst of mkfs leaves
		return err
	}
	if err := h.Write(device, fstype); err != nil {
		return err
	}
	_, err = h.fill(device, true)
	return err
}

// Check has nothing to check; see backend.Filesystem.
func (*Host) Check(context.Context, string, string) error { return nil }

// Mount mounts; see backend.Filesystem.
func (h *Host) Mount(_ context.Context, m backend.Mount) error {
	content, err := h.Read(m.Device)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if there, ok := h.mounts[m.Path]; ok && there.Device != m.Device {
		return fmt.Errorf("mount on %s: %w", m.Path, backend.ErrBusy)
	}
	if fstype, _, _ := strings.Cut(content, " "); fstype != m.FSType {
		return fmt.Errorf("mount %s as %s: it holds %q", m.Device, m.FSType, content)
	}
	h.mounts[m.Path] = m
	return nil
}

// InitRoot has nothing to do; see backend.Filesystem.
func (h *Host) InitRoot(context.Context, string, backend.Owner) error { return nil }

// Unmount unmounts; see backend.Filesystem.
func (h *Host) Unmount(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mounts, path)
	return nil
}

// LazyUnmount unmounts; see backend.Filesystem.
func (h *Host) LazyUnmount(ctx context.Context, path string) error { return h.Unmount(ctx, path) }

// Held looks whether Hold has been called; see backend.Filesystem.
func (h *Host) Held(_ context.Context, _ string, devices []string) (map[string]bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := map[string]bool{}
	for _, name := range devices {
		d := h.byDevice(name)
		held[name] = d != nil && d.held > 0
	}
	return held, nil
}

// CheckHealth looks whether Spoil has been called; see backend.Filesystem.
func (h *Host) CheckHealth(_ context.Context, m backend.Mount) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.spoilt[m.Device] {
		return fmt.Errorf("%w: errors have made it read-only", backend.ErrUnexpectedContent)
	}
	return nil
}

// Spoil makes the filesystem on a device read-only, as errors do.
func (h *Host) Spoil(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spoilt[device] = true
}

// CheckPropagation has no host to look at; see backend.Filesystem.
func (*Host) CheckPropagation(context.Context, string) error { return nil }

// Mounted lists the mounts; see backend.Filesystem.
func (h *Host) Mounted(_ context.Context, dir string) (map[string]backend.Mount, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mounts := maps.Clone(h.mounts)
	maps.DeleteFunc(mounts, func(path string, _ backend.Mount) bool { return filepath.Dir(path) != dir })
	return mounts, nil
}
