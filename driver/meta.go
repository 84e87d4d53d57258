package driver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// Keys of what Create was told. It waits in the volume's blank; what is needed
// for longer than the first mount then goes to the image's metadata, under the
// prefix that package rbd gives it, where an operator can read and mend it with
// rbd image-meta. It is never taken back there, so that a write that comes late
// does no harm.
const (
	metaFSType       = "fstype" // there means: the filesystem is complete
	metaMkfsOptions  = "mkfsOptions"
	metaMountOptions = "mountOptions"
	metaUID          = "uid"
	metaGID          = "gid"
	metaMode         = "mode"
)

// metaOf returns the metadata of a volume: the image's own or, before
// the first mount, what its blank promises.
func (d *Driver) metaOf(ctx context.Context, h Handle) (meta map[string]string, formatted bool, err error) {
	meta, err = h.Meta(ctx)
	if err != nil || meta[metaFSType] != "" {
		return meta, err == nil, err
	}
	b, _, err := d.loadBlank(ctx, h.Image().Name)
	if errors.Is(err, ErrNotFound) {
		return meta, false, nil
	}
	return b.Meta, false, err
}

// meta is what Create leaves for the first Mount, on whatever node.
func (o options) meta() map[string]string {
	m := map[string]string{metaFSType: o.fstype}
	set := func(key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	set(metaMkfsOptions, o.mkfsOptions)
	set(metaMountOptions, o.mountOptions)
	set(metaUID, decimal(o.owner.UID))
	set(metaGID, decimal(o.owner.GID))
	if o.owner.Mode != nil {
		set(metaMode, fmt.Sprintf("%04o", *o.owner.Mode))
	}
	return m
}

func decimal(n *uint32) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), 10)
}

// ownerOf reads back what meta wrote. An operator may have edited it.
func ownerOf(meta map[string]string) (owner Owner, err error) {
	if owner.UID, err = parseID(metaUID, meta[metaUID]); err != nil {
		return owner, err
	}
	if owner.GID, err = parseID(metaGID, meta[metaGID]); err != nil {
		return owner, err
	}
	owner.Mode, err = parseMode(meta[metaMode])
	return owner, err
}
