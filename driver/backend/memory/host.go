package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Host is the kernel of one node: devices, mounts, and what containers hold.
// It implements backend.Mapper and backend.Filesystem.
//
// A device's content is a text, "ext4", "ext4 with data", "foreign"; the empty
// text is a device that was never written.
type Host struct {
	IP      string
	cluster *Cluster

	mu     sync.Mutex
	mapped map[string]*device // by key
	mounts map[string]backend.Mount
	spoilt map[string]bool // by device
	frozen map[string]bool // by path
	next   int
	lacks  string // a feature
}

type device struct {
	backend.Mapping
	client *Client
	image  *image
	size   uint64
	opened bool // it is encrypted, and the plain text can be had
	held   int  // by containers, in their own mount namespaces
}

// NewHost returns a node of the cluster.
func NewHost(c *Cluster, ip string) *Host {
	return &Host{IP: ip, cluster: c, mapped: map[string]*device{}, mounts: map[string]backend.Mount{}, spoilt: map[string]bool{}, frozen: map[string]bool{}}
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
	if d.Mode == backend.ReadOnly {
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
	if d.image.locked != nil && !d.opened {
		return "crypto_LUKS", nil
	}
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

// Map maps an image; see backend.Mapper.
func (h *Host) Map(ctx context.Context, img backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if img.Snap != "" {
		mode = backend.ReadOnly
	}
	if d := h.mapped[img.Key()]; d != nil && d.Alive {
		return d.Mapping, nil
	}
	client := h.cluster.Connect(h.IP)
	leave, err := client.enter(ctx)
	if err != nil {
		return backend.Mapping{}, err
	}
	defer leave()
	i := h.cluster.images[img.Name]
	if i == nil || i.ID != img.ID {
		return backend.Mapping{}, fmt.Errorf("map: %w", backend.ErrNotFound)
	}
	if img.Snap != "" {
		n, err := i.find(img.Snap)
		if err != nil {
			return backend.Mapping{}, fmt.Errorf("map: %w", err)
		}
		i = &image{Image: i.Image, disk: i.snaps[n].disk, locked: i.locked, mapped: true}
	}
	if !i.mapped {
		return backend.Mapping{}, errors.New("map: the image has no object map")
	}
	if img.Encryption != nil && (i.locked == nil || !bytes.Equal(i.locked.Passphrase, img.Encryption.Passphrase)) {
		return backend.Mapping{}, errors.New("the passphrase does not open the encrypted image")
	}
	if mode == backend.ReadWrite {
		i.watchers[client.addr]++
	}
	h.next++
	d := &device{
		Mapping: backend.Mapping{Name: img.Name, ID: img.ID, Snap: img.Snap, Device: fmt.Sprintf("/dev/mem%d", h.next), Addr: client.addr, Alive: true, Mode: mode},
		client:  client, image: i, size: i.Size, opened: img.Encryption != nil,
	}
	h.mapped[img.Key()] = d
	return d.Mapping, nil
}

// Unmap takes a device away; see backend.Mapper.
func (h *Host) Unmap(_ context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.mapped[key]
	if d == nil {
		return nil
	}
	if d.held > 0 || h.mountOf(d.Device) != "" {
		return fmt.Errorf("unmap %s: %w", d.Device, backend.ErrBusy)
	}
	d.client.Kill()
	delete(h.mapped, key)
	return nil
}

// ForceUnmap takes a device away by force; see backend.Mapper.
func (h *Host) ForceUnmap(_ context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.mapped[key]; d != nil {
		d.client.Kill()
		delete(h.mapped, key)
	}
	return nil
}

// Mappings lists the devices; see backend.Mapper.
func (h *Host) Mappings(context.Context) ([]backend.Mapping, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []backend.Mapping
	for _, d := range h.mapped {
		all = append(all, d.Mapping)
	}
	return all, nil
}

// Size looks at the image; see backend.Mapper.
func (h *Host) Size(_ context.Context, m backend.Mapping) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.byDevice(m.Device)
	if d == nil {
		return 0, fmt.Errorf("%s: no such device", m.Device)
	}
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	d.size = max(d.size, d.image.Size)
	return d.size, nil
}

// Supports knows all features but one; see backend.Mapper.
func (h *Host) Supports(features []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Contains(features, h.lacks) {
		return fmt.Errorf("%w: this kernel cannot map images with %s", backend.ErrInvalid, h.lacks)
	}
	return nil
}

// Lacks makes the kernel one that does not know a feature.
func (h *Host) Lacks(feature string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lacks = feature
}

func (h *Host) mountOf(device string) string {
	for path, m := range h.mounts {
		if m.Device == device {
			return path
		}
	}
	return ""
}
