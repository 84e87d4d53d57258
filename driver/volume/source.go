package volume

import (
	"fmt"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Accepts tells whether a volume that is asked for can be in this pool.
func Accepts(p backend.PoolSpec, given map[string]string) error {
	pool, space := strings.TrimSpace(given[OptPool]), strings.TrimSpace(given[OptNamespace])
	switch {
	case pool != "" && pool != p.Pool:
		return backend.Invalidf("option %s=%q: this plugin's volumes are in pool %q (settings RBD_CONF_POOL and RBD_POOLS)", OptPool, pool, p.Pool)
	case space != "" && space != p.Namespace:
		return backend.Invalidf("option %s=%q: this plugin's volumes are in %s (settings RBD_CONF_NAMESPACE and RBD_POOLS)", OptNamespace, space, p)
	}
	return nil
}

// parseSource reads of what the volume is to be a copy, and what may be done to it.
func (o *Spec) parseSource(given map[string]string) (err error) {
	option, value := OptFrom, given[OptFrom]
	if snapshot := given[OptSnapshot]; snapshot != "" {
		if value != "" {
			return backend.Invalidf("options %s and %s: give one of them; %s is for one that can be written", OptFrom, OptSnapshot, OptFrom)
		}
		option, value, o.ReadOnly = OptSnapshot, snapshot, true
	}
	if o.Source, err = parseVolumeAt(option, value); err != nil {
		return err
	}
	readOnly, err := parseBool(OptReadOnly, given[OptReadOnly])
	if err != nil {
		return err
	}
	o.ReadOnly = o.ReadOnly || readOnly
	if o.Protected, err = parseBool(OptProtected, given[OptProtected]); err != nil {
		return err
	}
	if o.Source.Volume == "" {
		if o.ReadOnly {
			return backend.Invalidf("option %s=%q: a new volume must be written once; give %s=VOLUME too, or fill it and say "+
				"rbd image-meta set POOL/VOLUME docker_volume.readonly true", OptReadOnly, given[OptReadOnly], OptFrom)
		}
		return nil
	}
	for _, name := range []string{OptMkfsOptions, OptUID, OptGID, OptMode, OptEncryption, OptPassphrase} {
		if given[name] != "" {
			return backend.Invalidf("option %s=%q: with %s the volume has all that from the one that it is made of", name, given[name], option)
		}
	}
	return nil
}

// parseVolumeAt reads "volume" or "volume@snapshot"; the option snapshot wants both.
func parseVolumeAt(option, value string) (s Source, err error) {
	if value == "" {
		return s, nil
	}
	volume, snap, at := strings.Cut(value, "@")
	switch {
	case option == OptSnapshot && !at:
		return s, backend.Invalidf("option %s=%q: give VOLUME@SNAPSHOT", option, value)
	case at && CheckSnapshotName(snap) != nil, !backend.ValidName(volume):
		return s, backend.Invalidf("option %s=%q: give VOLUME or VOLUME@SNAPSHOT; names have letters, digits, '_', '.', '-' (a snapshot's ':' too)", option, value)
	}
	return Source{volume, snap}, nil
}

// CheckSnapshotName allows what both mappers, and a file name, can have.
func CheckSnapshotName(name string) error {
	for _, r := range name {
		if !strings.ContainsRune("_.:-", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return backend.Invalidf("snapshot %.40q: allowed are letters, digits, '_', '.', ':' and '-'", name)
		}
	}
	if name == "" || len(name) > backend.MaxName {
		return backend.Invalidf("snapshot %.40q: a name has 1 to %d bytes", name, backend.MaxName)
	}
	return nil
}

// spec names a source for a message.
func (s Source) String() string {
	if s.Snapshot == "" {
		return s.Volume
	}
	return fmt.Sprintf("%s@%s", s.Volume, s.Snapshot)
}
