package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Volume is what Docker is told of a volume.
type Volume struct {
	Name       string
	Mountpoint string // "" while it is not mounted on this node
	Created    time.Time
	Status     map[string]any // shown by docker volume inspect
}

// Create makes the image of a new volume; the filesystem waits for the first
// Mount. A volume that exists and agrees with the options is a success: Docker
// repeats itself, and the other nodes of a swarm create at the same time.
func (d *Driver) Create(ctx context.Context, name string, opts map[string]string) error {
	ctx, cancel := d.inTrouble(ctx)
	defer cancel()
	return wrap("create", name, d.create(ctx, name, opts))
}

func (d *Driver) create(ctx context.Context, name string, given map[string]string) error {
	if err := checkName(name); err != nil {
		return err
	}
	o, err := parseOptions(d.pool, d.defaults, given)
	if err != nil {
		return err
	}
	unlock, err := d.locks.lock(ctx, name, "create")
	if err != nil {
		return err
	}
	defer unlock()

	exists, err := d.images.Exists(ctx, name)
	switch {
	case err != nil:
		return err
	case exists:
		err = d.agree(ctx, name, o)
	default:
		spec := ImageSpec{Name: name, Size: o.size, ObjectSize: o.objectSize, DataPool: o.dataPool, Features: o.features}
		promised, err := d.promise(ctx, name, blank{Image: spec, Meta: o.meta()})
		if err != nil {
			return err
		}
		switch err = d.images.Create(ctx, spec); {
		case errors.Is(err, ErrExists):
			return d.agree(ctx, name, o)
		case errors.Is(err, ErrInvalid): // nothing was made, nor will be by any who was promised the same
			return also(err, "clean up", d.forgetBlank(ctx, name, promised))
		case err != nil:
			return err
		}
	}
	if err == nil {
		d.record.put(name, d.now())
	}
	return err
}

// agree compares an existing volume with what is asked for; ErrNotFound if
// there is none.
func (d *Driver) agree(ctx context.Context, name string, o options) error {
	h, err := d.images.Open(ctx, name, ReadOnly)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, h)
	meta, _, err := d.metaOf(ctx, h)
	if err != nil {
		return err
	}
	return o.agree(h.Image(), meta)
}

// Get describes a volume. ErrNotFound means that Ceph said so; while Ceph
// cannot be asked the record answers, and for a volume that it does not know
// the error is ErrUnavailable. ErrInvalid: no volume can be on such an image.
func (d *Driver) Get(ctx context.Context, name string) (Volume, error) {
	if checkName(name) != nil { // Docker asks every driver for any name
		return Volume{}, wrap("get", name, ErrNotFound)
	}
	created, known := d.record.get(name)
	patience := d.patience
	if known { // there is another answer
		patience /= 2
	}
	var v Volume
	err := errEarly
	if !known || !d.outage.early() {
		err = d.ask(ctx, patience, func(ctx context.Context) (err error) {
			v, err = d.describe(ctx, name)
			return err
		})
	}
	if err == nil {
		d.record.put(name, v.Created)
		return v, nil
	}
	if errors.Is(err, ErrNotFound) {
		d.record.remove(name)
		return Volume{}, wrap("get", name, err)
	}
	if errors.Is(err, ErrInvalid) {
		return Volume{}, wrap("get", name, err)
	}
	if !known {
		return Volume{}, wrap("get", name, fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
	return Volume{
		Name: name, Mountpoint: d.Path(ctx, name), Created: created,
		Status: map[string]any{"pool": d.pool, "ceph": "unavailable: " + err.Error()},
	}, nil
}

// describe asks Ceph.
func (d *Driver) describe(ctx context.Context, name string) (v Volume, err error) {
	v = Volume{Name: name, Mountpoint: d.Path(ctx, name)}
	h, err := d.images.Open(ctx, name, ReadOnly)
	if err != nil {
		return v, err
	}
	defer d.closeHandle(ctx, h)
	image := h.Image()
	meta, formatted, err := d.metaOf(ctx, h)
	if err != nil {
		return v, err
	}
	v.Created = image.Created
	v.Status = map[string]any{
		"pool": d.pool, "image": image.Name, "id": image.ID, "size": formatSize(image.Size),
		"filesystem": filesystemStatus(meta, formatted), "created": image.Created.Format(time.RFC3339),
	}
	if d.space != "" {
		v.Status["namespace"] = d.space
	}
	if d.why != "" {
		v.Status["mapper"] = d.why
	}
	switch guard, _, err := d.loadGuard(ctx, image.ID); {
	case err == nil:
		v.Status["node"] = guard.Node
		v.Status["since"] = guard.Since.Format(time.RFC3339)
		v.Status["client"] = strings.Join(guard.Addrs, ", ")
	case !errors.Is(err, ErrNotFound):
		return v, err
	}
	if m, found, _ := d.mapping(ctx, v.Name); found {
		v.Status["device"] = m.Device
	}
	if mount, found, _ := d.mounted(ctx, name); found {
		if broken := d.fs.Sound(ctx, mount); errors.Is(broken, ErrContent) {
			v.Status["error"] = broken.Error() + "; restart its containers"
		}
	}
	// Without fast-diff, or with an object map that is not valid, it takes a
	// question per object: too long for what every start of a container asks.
	if slices.Contains(image.Features, "fast-diff") {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if used, err := h.Used(ctx); err == nil {
			v.Status["used"] = formatSize(used)
		}
	}
	return v, nil
}

func filesystemStatus(meta map[string]string, formatted bool) string {
	switch fstype := meta[metaFSType]; {
	case formatted:
		return fstype
	case fstype != "":
		return fstype + " (made at the first mount)"
	}
	return "not made by this plugin, mounted as it is"
}

// List names the volumes: those of Ceph or, while Ceph cannot be asked, those
// of the record.
func (d *Driver) List(ctx context.Context) ([]Volume, error) {
	mounts, err := d.fs.Mounted(ctx, d.mounts)
	if err != nil {
		d.log.Warnf("list: mounts of this node: %v", err)
	}
	_ = d.learn(ctx)
	names := d.record.names()
	volumes := make([]Volume, 0, len(names))
	for _, name := range names {
		created, _ := d.record.get(name)
		v := Volume{Name: name, Created: created}
		if _, here := mounts[d.path(name)]; here {
			v.Mountpoint = d.path(name)
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// learn asks Ceph which volumes there are, and writes it down.
func (d *Driver) learn(ctx context.Context) error {
	var names []string
	err := d.ask(ctx, d.patience/2, func(ctx context.Context) (err error) {
		names, err = d.images.Names(ctx)
		return err
	})
	if err == nil {
		d.record.replace(names)
	}
	return err
}

// Path is where the volume is mounted on this node, "" if it is not. It asks
// the kernel only.
func (d *Driver) Path(ctx context.Context, name string) string {
	if m, found, _ := d.mounted(ctx, name); found {
		return m.Path
	}
	return ""
}

// removePatience bounds how long Remove waits for a holder to let go: the one
// who asks wants to know where it is in use, not to wait for it.
const removePatience = 5 * time.Second

// Remove deletes a volume that nobody uses. One that is gone already is a
// success: Docker on this node may have missed its removal on another.
func (d *Driver) Remove(ctx context.Context, name string) error {
	return wrap("remove", name, d.remove(ctx, name))
}

func (d *Driver) remove(ctx context.Context, name string) (err error) {
	unlock, err := d.begin(ctx, name, "remove")
	if err != nil {
		return err
	}
	defer unlock()
	if n := d.refs.count(name); n > 0 {
		return fmt.Errorf("%w: %d containers use it on this node (%s)", ErrBusy, n, d.node.Name)
	}
	if err := d.letGo(ctx, name); err != nil { // what a crash may have left mapped
		return err
	}
	wait, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	l, err := d.acquire(wait, name)
	if errors.Is(err, ErrNotFound) {
		d.record.remove(name)
		return nil
	}
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, l)
	_, promised, err := d.loadBlank(ctx, name) // before the name is free for another's
	if err == nil || errors.Is(err, ErrNotFound) {
		err = d.swap(ctx, l, guardRemoving, l.Client())
	}
	if err == nil {
		err = l.Remove(ctx)
	}
	if errors.Is(err, ErrNotFound) { // removed by another way meanwhile
		err = nil
	}
	if err == nil {
		err = d.forgetBlank(ctx, name, promised)
	}
	if errors.Is(err, ErrUnavailable) {
		return err // it may yet happen: the guard stays, and its next taker fences us first
	}
	if err != nil {
		return also(err, "give the guard back", d.giveBack(ctx, l.Image().ID, l.version))
	}
	d.record.remove(name)
	return d.giveBack(ctx, l.Image().ID, l.version)
}

// also adds what went wrong while a failure was being undone, in one line.
func also(err error, what string, second error) error {
	if second == nil {
		return err
	}
	return fmt.Errorf("%w; and then %s: %w", err, what, second)
}
