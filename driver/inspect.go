package driver

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// describe asks Ceph. With an error it is what could be learned all the same, or
// nothing, without a Status, if the image could not be opened.
func (d *Driver) describe(ctx context.Context, name string) (v Volume, err error) {
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return Volume{}, err
	}
	defer d.closeHandle(ctx, h)
	image := h.Image()
	v = Volume{Name: name, Created: image.Created, Status: map[string]any{
		"pool": d.pool.Pool, "image": image.Name, "id": image.ID, "size": volume.FormatSize(image.Size),
		"created": image.Created.Format(time.RFC3339), "features": strings.Join(image.Features, ","), "trash": d.trashStatus(),
	}}
	v.show("namespace", d.pool.Namespace)
	v.show("mapper", d.why)
	v.show("parent", parentStatus(image.Parent))
	err = together([]error{ // one that fails says nothing of the others
		d.describeMeta(ctx, h, v),
		d.describeGuard(ctx, image.ID, v),
		d.describeSnapshots(ctx, h, v),
		d.describeLayout(ctx, h, v),
	})
	v.Mountpoint = d.Path(ctx, name)
	mapped, _ := d.mappings(ctx)
	if m, replaced := other(image, mapped); replaced {
		v.show("error", d.replaced(m).Error())
	} else {
		d.describeHere(ctx, v)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if used, known, err := h.DiskUsage(ctx); err == nil && known {
			v.Status["used"] = volume.FormatSize(used)
		}
	}
	return v, err
}

func (v Volume) show(key, value string) {
	if value != "" {
		v.Status[key] = value
	}
}

func (d *Driver) describeMeta(ctx context.Context, h backend.Handle, v Volume) error {
	meta, p, _, err := d.metaOf(ctx, h)
	if err != nil {
		return err
	}
	v.Status["size"] = volume.FormatSize(sizeOf(h.Image(), p))
	v.Status["filesystem"] = filesystemStatus(meta, p)
	for key, value := range meta.Kept().Encode() {
		v.show(key, value)
	}
	if labels, err := volume.ParseLabels(meta.Labels); err == nil && labels != nil {
		v.Status[volume.KeyLabels] = labels
	}
	if halfway := meta.CheckRollback(); halfway != nil {
		v.show("error", halfway.Error())
	}
	if meta.ReadOnly {
		if err := d.describeReaders(ctx, h.Image().ID, v); err != nil {
			return err
		}
	}
	mapped, _ := d.mappings(ctx)
	if _, replaced := other(h.Image(), mapped); replaced || d.Path(ctx, v.Name) == "" {
		return nil
	}
	return d.useDirectory(v.Name, meta.Subdirectory)
}

func (d *Driver) describeReaders(ctx context.Context, id string, v Volume) error {
	readers, _, err := d.guards.Readers(ctx, id)
	if len(readers) > 0 {
		nodes := make([]string, len(readers))
		for i, r := range readers {
			nodes[i] = r.Node
		}
		v.Status["readers"] = nodes
	}
	return err
}

func (d *Driver) describeGuard(ctx context.Context, id string, v Volume) error {
	guard, _, err := d.guards.Load(ctx, id)
	switch {
	case err == nil:
		v.Status["node"] = guard.Node
		v.Status["since"] = guard.Since.Format(time.RFC3339)
		v.Status["client"] = strings.Join(guard.Addrs, ", ")
	case errors.Is(err, backend.ErrNotFound):
		return nil
	}
	return err
}

func (d *Driver) describeSnapshots(ctx context.Context, h backend.Handle, v Volume) error {
	snaps, err := h.Snapshots(ctx)
	if err != nil {
		return err
	}
	if len(snaps) > 0 {
		names := make([]string, len(snaps))
		for i, s := range snaps {
			names[i] = s.Name
		}
		v.Status["snapshots"] = names
	}
	copies, err := h.Clones(ctx)
	switch {
	case errors.Is(err, backend.ErrDenied): // they are in pools of others, and no fault of this volume
		v.Status["copies"] = "not visible to this user"
		return nil
	case err == nil && len(copies) > 0:
		v.Status["copies"] = copies
	}
	return err
}

func (d *Driver) describeLayout(ctx context.Context, h backend.Handle, v Volume) error {
	layout, err := h.Layout(ctx)
	if err != nil {
		return err
	}
	v.Status["object-size"] = volume.FormatSize(layout.ObjectSize)
	v.show("data-pool", layout.DataPool)
	if layout.StripeCount > 1 {
		v.Status["stripe-unit"], v.Status["stripe-count"] = volume.FormatSize(layout.StripeUnit), layout.StripeCount
	}
	return nil
}

// describeHere adds what this node knows.
func (d *Driver) describeHere(ctx context.Context, v Volume) {
	v.show("work", d.underWay(v.Name))
	if m, found, _ := d.mapping(ctx, v.Name); found {
		v.Status["device"] = m.Device
	}
	mount, found, _ := d.mounted(ctx, v.Name)
	if !found {
		return
	}
	if broken := d.fs.CheckHealth(ctx, mount); errors.Is(broken, backend.ErrUnexpectedContent) {
		v.Status["error"] = broken.Error() + "; restart its containers"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if size, used, err := d.fs.Usage(ctx, mount.Path); err == nil {
		v.Status["filesystem-size"], v.Status["filesystem-used"] = volume.FormatSize(size), volume.FormatSize(used)
	}
}

func filesystemStatus(meta volume.Metadata, p *pending) string {
	switch fstype := meta.FSType; {
	case p != nil && p.Image.Parent != nil:
		return strings.TrimSpace(fstype + " (a copy, made complete at the first mount)")
	case p != nil:
		return fstype + " (made at the first mount)"
	case fstype != "":
		return fstype
	}
	return "not made by this plugin, mounted as it is"
}

func parentStatus(o *backend.Parent) string {
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
