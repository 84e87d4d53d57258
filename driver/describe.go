package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// describe asks Ceph.
func (d *Driver) describe(ctx context.Context, name string) (v Volume, err error) {
	v = Volume{Name: name, Mountpoint: d.Path(ctx, name)}
	h, err := d.images.Open(ctx, name, ReadOnly)
	if err != nil {
		return v, err
	}
	defer d.closeHandle(ctx, h)
	image := h.Image()
	meta, promised, err := d.metaOf(ctx, h)
	if err != nil {
		return v, err
	}
	if v.Mountpoint != "" && d.useDirectory(name, meta) == nil {
		v.Mountpoint = d.Path(ctx, name)
	}
	v.Created = image.Created
	v.Status = map[string]any{
		"pool": d.place.Pool, "image": image.Name, "id": image.ID, "size": formatSize(sizeOf(image, promised)),
		"filesystem": filesystemStatus(meta, promised), "created": image.Created.Format(time.RFC3339),
		"features": strings.Join(image.Features, ","), "trash": d.trashStatus(),
	}
	show := func(key, value string) {
		if value != "" {
			v.Status[key] = value
		}
	}
	show("namespace", d.place.Namespace)
	show("mapper", d.why)
	show("parent", parentStatus(image.Parent))
	for _, key := range metaOfVolume {
		show(key, meta[key])
	}
	if labels, err := parseLabels(meta[metaLabels]); err == nil && labels != nil {
		v.Status[metaLabels] = labels
	}
	if halfway := halfRolledBack(meta); halfway != nil {
		show("error", halfway.Error())
	}
	switch guard, _, err := d.loadGuard(ctx, image.ID); {
	case err == nil:
		v.Status["node"] = guard.Node
		v.Status["since"] = guard.Since.Format(time.RFC3339)
		v.Status["client"] = strings.Join(guard.Addrs, ", ")
	case !errors.Is(err, ErrNotFound):
		return v, err
	}
	snaps, err := h.Snapshots(ctx)
	if err != nil {
		return v, err
	}
	if len(snaps) > 0 {
		names := make([]string, len(snaps))
		for i, s := range snaps {
			names[i] = s.Name
		}
		v.Status["snapshots"] = names
	}
	copies, err := h.Clones(ctx)
	if err != nil {
		return v, err
	}
	if len(copies) > 0 {
		v.Status["copies"] = copies
	}
	layout, err := h.Layout(ctx)
	if err != nil {
		return v, err
	}
	v.Status["object size"] = formatSize(layout.ObjectSize)
	show("data pool", layout.DataPool)
	if layout.StripeCount > 1 {
		v.Status["stripe unit"], v.Status["stripe count"] = formatSize(layout.StripeUnit), layout.StripeCount
	}
	d.describeHere(ctx, v)
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

// describeHere adds what this node knows.
func (d *Driver) describeHere(ctx context.Context, v Volume) {
	if m, found, _ := d.mapping(ctx, v.Name); found {
		v.Status["device"] = m.Device
	}
	mount, found, _ := d.mounted(ctx, v.Name)
	if !found {
		return
	}
	if broken := d.fs.Sound(ctx, mount); errors.Is(broken, ErrContent) {
		v.Status["error"] = broken.Error() + "; restart its containers"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if size, used, err := d.fs.Space(ctx, mount.Path); err == nil {
		v.Status["filesystem size"], v.Status["filesystem used"] = formatSize(size), formatSize(used)
	}
}

func filesystemStatus(meta map[string]string, promised *blank) string {
	switch fstype := meta[metaFSType]; {
	case promised != nil && promised.Image.From != nil:
		return strings.TrimSpace(fstype + " (a copy, made complete at the first mount)")
	case promised != nil:
		return fstype + " (made at the first mount)"
	case fstype != "":
		return fstype
	}
	return "not made by this plugin, mounted as it is"
}

func parentStatus(o *Origin) string {
	if o == nil {
		return ""
	}
	return o.String() + "/" + o.Image + "@" + o.Snap
}

func (d *Driver) trashStatus() string {
	if d.trash == 0 {
		return "none: removed at once"
	}
	return "kept for " + d.trash.String() + " after removal"
}
