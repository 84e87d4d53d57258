package driver

import (
	"context"
	"fmt"
	"strconv"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Keys of what Create was told. It waits in the volume's blank; what is needed
// for longer than the first mount then goes to the image's metadata, under the
// prefix that package rbd gives it, where an operator can read and mend it with
// rbd image-meta. It is never taken back there, so that a write that comes late
// does no harm.
const (
	metaFSType       = "fstype"   // there means: the filesystem is complete; a clone has its parent's
	metaComplete     = "complete" // id of the image that is complete, whatever promise of one comes back
	metaMkfsOptions  = "mkfsOptions"
	metaMountOptions = "mountOptions"
	metaUID          = "uid"
	metaGID          = "gid"
	metaMode         = "mode"
	metaReadOnly     = "readonly"   // "true": mounted read-only, on any number of nodes
	metaSealed       = "sealed"     // id of the image that was made ready for that
	metaRollback     = "rollback"   // name of a snapshot: a roll-back to it has not ended
	metaProtected    = "protected"  // "true": not removed
	metaEncryption   = "encryption" // luks1, luks2
	metaPassphrase   = "passphrase" // where it is
	metaLabels       = "labels"
	metaDescription  = "description"
	metaSubdirectory = "subdirectory" // of the filesystem, which is the volume: rexray's are like that
)

// metaOfVolume are the keys that stay with the image for good. A clone has them
// from its parent, until its first mount.
var metaOfVolume = []string{metaMountOptions, metaReadOnly, metaProtected, metaEncryption, metaPassphrase, metaLabels, metaDescription, metaSubdirectory}

// metaOf returns the metadata of a volume: the image's own or, before the first
// mount, what its blank promises, with that blank.
func (d *Driver) metaOf(ctx context.Context, h backend.Handle) (meta map[string]string, promised *blank, err error) {
	meta, err = h.Meta(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, _, err := d.promised(ctx, h.Image(), meta)
	if b != nil {
		meta = b.Meta
	}
	return meta, b, err
}

// flag reads one that may have been set by hand.
func flag(meta map[string]string, key string) bool {
	on, err := parseBool(key, meta[key])
	return on || err != nil // to be on the safe side
}

// meta is what Create leaves for the first Mount, on whatever node.
func (o options) meta() map[string]string {
	m := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	set(metaFSType, o.fstype)
	set(metaMkfsOptions, o.mkfsOptions)
	set(metaMountOptions, o.mountOptions)
	set(metaUID, decimal(o.owner.UID))
	set(metaGID, decimal(o.owner.GID))
	if o.owner.Mode != nil {
		set(metaMode, fmt.Sprintf("%04o", *o.owner.Mode))
	}
	if o.readOnly {
		set(metaReadOnly, "true")
	}
	if o.protected {
		set(metaProtected, "true")
	}
	set(metaEncryption, o.encryption)
	set(metaPassphrase, o.passphrase)
	set(metaLabels, o.given[OptLabels])
	set(metaDescription, o.description)
	return m
}

func decimal(n *uint32) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), 10)
}

// ownerOf reads back what meta wrote. An operator may have edited it.
func ownerOf(meta map[string]string) (owner backend.Owner, err error) {
	if owner.UID, err = parseID(metaUID, meta[metaUID]); err != nil {
		return owner, err
	}
	if owner.GID, err = parseID(metaGID, meta[metaGID]); err != nil {
		return owner, err
	}
	owner.Mode, err = parseMode(meta[metaMode])
	return owner, err
}
