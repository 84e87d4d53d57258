package memory

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// Host is the kernel of one node: devices, mounts, and what containers hold.
// It implements driver.Mapper and driver.Filesystem.
//
// A device's content is a text, "ext4", "ext4 with data", "foreign"; the empty
// text is a device that was never written.
type Host struct {
	IP      string
	cluster *Cluster

	mu     sync.Mutex
	mapped map[string]*device // by key
	mounts map[string]driver.Mount
	spoilt map[string]bool // by device
	next   int
}

type device struct {
	driver.Mapping
	client *Client
	image  *image
	mode   driver.OpenMode
	held   int // by containers, in their own mount namespaces
}

// NewHost returns a node of the cluster.
func NewHost(c *Cluster, ip string) *Host {
	return &Host{IP: ip, cluster: c, mapped: map[string]*device{}, mounts: map[string]driver.Mount{}, spoilt: map[string]bool{}}
}

// Reboot loses everything that a power cut does; Ceph has noticed.
func (h *Host) Reboot() {
	h.Cut()
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.mapped)
	clear(h.mounts)
}

// Cut loses the mappings' watches and nothing else: a network that was away
// for longer than Ceph's watch timeout.
func (h *Host) Cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.mapped {
		d.client.Kill()
	}
}

// Break ends the data path of an image, as the death of its image server does.
func (h *Host) Break(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.mapped[key]; d != nil {
		d.client.Kill()
		d.Alive = false
	}
}

// Hold is a container that mounts the volume at the path into its own
// namespace, where it stays until release is called.
func (h *Host) Hold(path string) (release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.byDevice(h.mounts[path].Device)
	if d == nil {
		return nil, fmt.Errorf("nothing is mounted on %s", path)
	}
	d.held++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		d.held--
	}, nil
}

// Write writes through a mapping, as a filesystem does; an error once it is
// fenced or gone.
func (h *Host) Write(device, content string) error {
	h.mu.Lock()
	d := h.byDevice(device)
	h.mu.Unlock()
	if d == nil || !d.Alive {
		return fmt.Errorf("%s: no such device or its server is dead", device)
	}
	if d.mode == driver.ReadOnly {
		return fmt.Errorf("%s: read-only", device)
	}
	leave, err := d.client.enter(context.Background())
	if err != nil {
		return err
	}
	defer leave()
	d.image.data = []byte(content)
	return nil
}

// Read returns the content of a device.
func (h *Host) Read(device string) (string, error) {
	h.mu.Lock()
	d := h.byDevice(device)
	h.mu.Unlock()
	if d == nil {
		return "", fmt.Errorf("%s: no such device", device)
	}
	leave, err := d.client.enter(context.Background())
	if err != nil {
		return "", err
	}
	defer leave()
	return string(d.image.data), nil
}

func (h *Host) byDevice(name string) *device {
	for _, d := range h.mapped {
		if d.Device == name {
			return d
		}
	}
	return nil
}

// Map maps an image; see driver.Mapper.
func (h *Host) Map(ctx context.Context, img driver.Image, mode driver.OpenMode) (driver.Mapping, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if img.Snap != "" {
		mode = driver.ReadOnly
	}
	if d := h.mapped[img.Key()]; d != nil && d.Alive {
		return d.Mapping, nil
	}
	client := h.cluster.Connect(h.IP)
	leave, err := client.enter(ctx)
	if err != nil {
		return driver.Mapping{}, err
	}
	defer leave()
	i := h.cluster.images[img.Name]
	if i == nil || i.ID != img.ID {
		return driver.Mapping{}, fmt.Errorf("map: %w", driver.ErrNotFound)
	}
	if data, ok := i.snaps[img.Snap]; ok {
		i = &image{Image: i.Image, data: data}
	} else if img.Snap != "" {
		return driver.Mapping{}, fmt.Errorf("map snapshot: %w", driver.ErrNotFound)
	}
	if mode == driver.ReadWrite {
		i.watchers[client.addr]++
	}
	h.next++
	d := &device{
		Mapping: driver.Mapping{Name: img.Name, ID: img.ID, Snap: img.Snap, Device: fmt.Sprintf("/dev/mem%d", h.next), Addr: client.addr, Alive: true},
		client:  client, image: i, mode: mode,
	}
	h.mapped[img.Key()] = d
	return d.Mapping, nil
}

// Unmap takes a device away; see driver.Mapper.
func (h *Host) Unmap(_ context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.mapped[key]
	if d == nil {
		return nil
	}
	if d.held > 0 || h.mountOf(d.Device) != "" {
		return fmt.Errorf("unmap %s: %w", d.Device, driver.ErrBusy)
	}
	d.client.Kill()
	delete(h.mapped, key)
	return nil
}

// Drop takes a device away by force; see driver.Mapper.
func (h *Host) Drop(_ context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.mapped[key]; d != nil {
		d.client.Kill()
		delete(h.mapped, key)
	}
	return nil
}

// Mappings lists the devices; see driver.Mapper.
func (h *Host) Mappings(context.Context) ([]driver.Mapping, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []driver.Mapping
	for _, d := range h.mapped {
		all = append(all, d.Mapping)
	}
	return all, nil
}

func (h *Host) mountOf(device string) string {
	for path, m := range h.mounts {
		if m.Device == device {
			return path
		}
	}
	return ""
}

// Probe names what is on a device; see driver.Filesystem.
func (h *Host) Probe(_ context.Context, device string) (string, error) {
	content, err := h.Read(device)
	if err != nil {
		return "", fmt.Errorf("%w: %w", driver.ErrContent, err)
	}
	switch fstype, _, _ := strings.Cut(content, " "); fstype {
	case "ext4", "xfs", "btrfs":
		return fstype, nil
	case "":
		return "", fmt.Errorf("%w: no filesystem is recognised on %s", driver.ErrContent, device)
	}
	return "", fmt.Errorf("%w: %s holds %s", driver.ErrContent, device, content)
}

// Format writes a filesystem; see driver.Filesystem.
func (h *Host) Format(_ context.Context, device, fstype string, options []string, fresh bool) error {
	if len(options) > 0 && options[0] == "--refused" {
		return fmt.Errorf("mkfs.%s: unknown option", fstype)
	}
	h.mu.Lock()
	busy := h.mountOf(device) != ""
	h.mu.Unlock()
	if busy {
		return fmt.Errorf("%s: %w", device, driver.ErrBusy)
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
	return h.Write(device, fstype)
}

// Check has nothing to check; see driver.Filesystem.
func (*Host) Check(context.Context, string, string) error { return nil }

// Mount mounts; see driver.Filesystem.
func (h *Host) Mount(_ context.Context, m driver.Mount) error {
	content, err := h.Read(m.Device)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if there, ok := h.mounts[m.Path]; ok && there.Device != m.Device {
		return fmt.Errorf("mount on %s: %w", m.Path, driver.ErrBusy)
	}
	if fstype, _, _ := strings.Cut(content, " "); fstype != m.FSType {
		return fmt.Errorf("mount %s as %s: it holds %q", m.Device, m.FSType, content)
	}
	h.mounts[m.Path] = m
	return nil
}

// Prepare has nothing to do; see driver.Filesystem.
func (h *Host) Prepare(context.Context, string, driver.Owner) error { return nil }

// Unmount unmounts; see driver.Filesystem.
func (h *Host) Unmount(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mounts, path)
	return nil
}

// Detach unmounts; see driver.Filesystem.
func (h *Host) Detach(ctx context.Context, path string) error { return h.Unmount(ctx, path) }

// Sound looks whether Spoil has been called; see driver.Filesystem.
func (h *Host) Sound(_ context.Context, m driver.Mount) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.spoilt[m.Device] {
		return fmt.Errorf("%w: errors have made it read-only", driver.ErrContent)
	}
	return nil
}

// Spoil makes the filesystem on a device read-only, as errors do.
func (h *Host) Spoil(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spoilt[device] = true
}

// Reaches has no host to look at; see driver.Filesystem.
func (*Host) Reaches(context.Context, string) error { return nil }

// Mounted lists the mounts; see driver.Filesystem.
func (h *Host) Mounted(_ context.Context, dir string) (map[string]driver.Mount, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mounts := maps.Clone(h.mounts)
	maps.DeleteFunc(mounts, func(path string, _ driver.Mount) bool { return filepath.Dir(path) != dir })
	return mounts, nil
}
