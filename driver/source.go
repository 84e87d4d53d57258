package driver

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// accepts tells whether a volume that is asked for can be in this place.
func accepts(p backend.Place, given map[string]string) error {
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
func (o *options) parseSource(given map[string]string) (err error) {
	option, value := OptFrom, given[OptFrom]
	if snapshot := given[OptSnapshot]; snapshot != "" {
		if value != "" {
			return backend.Invalidf("options %s and %s: give one of them; %s is for one that can be written", OptFrom, OptSnapshot, OptFrom)
		}
		option, value, o.readOnly = OptSnapshot, snapshot, true
	}
	if o.from, err = parseVolumeAt(option, value); err != nil {
		return err
	}
	readOnly, err := parseBool(OptReadOnly, given[OptReadOnly])
	if err != nil {
		return err
	}
	o.readOnly = o.readOnly || readOnly
	if o.protected, err = parseBool(OptProtected, given[OptProtected]); err != nil {
		return err
	}
	if o.from.volume == "" {
		if o.readOnly {
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
func parseVolumeAt(option, value string) (s source, err error) {
	if value == "" {
		return s, nil
	}
	volume, snap, at := strings.Cut(value, "@")
	switch {
	case option == OptSnapshot && !at:
		return s, backend.Invalidf("option %s=%q: give VOLUME@SNAPSHOT", option, value)
	case at && checkSnapName(snap) != nil, !backend.ValidName(volume):
		return s, backend.Invalidf("option %s=%q: give VOLUME or VOLUME@SNAPSHOT; names have letters, digits, '_', '.', '-' (a snapshot's ':' too)", option, value)
	}
	return source{volume, snap}, nil
}

// checkSnapName allows what both mappers, and a file name, can have.
func checkSnapName(name string) error {
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

// EncryptionFormats are the values of the option encryption.
var EncryptionFormats = []string{"luks2", "luks1", "none"}

// header is what a LUKS header takes of an image, in bytes: see package rbd.
func (o *options) header() uint64 {
	const size = 16 * mib
	round := cmp.Or(o.objectSize, mib4) * cmp.Or(o.stripeCount, 1)
	return (size + round - 1) / round * round
}

// parseEncryption reads how a new volume is encrypted. A copy is as its original.
func (o *options) parseEncryption(defaults map[string]string) error {
	if o.from.volume != "" {
		return nil
	}
	o.encryption = cmp.Or(o.given[OptEncryption], defaults[OptEncryption], "none")
	o.passphrase = cmp.Or(o.given[OptPassphrase], defaults[OptPassphrase])
	switch {
	case o.encryption == "none" && o.given[OptPassphrase] != "":
		return backend.Invalidf("option %s=%q: say %s=luks2 too", OptPassphrase, o.passphrase, OptEncryption)
	case o.encryption == "none":
		o.encryption, o.passphrase = "", ""
		return nil
	case !slices.Contains(EncryptionFormats, o.encryption):
		return backend.Invalidf("option %s=%q: allowed are %s", OptEncryption, o.encryption, strings.Join(EncryptionFormats, ", "))
	case o.passphrase == "":
		return backend.Invalidf("option %s=%q: name its passphrase, %s=file:NAME or ceph:NAME", OptEncryption, o.encryption, OptPassphrase)
	}
	return checkSecretName(o.passphrase)
}

func checkSecretName(name string) error {
	kind, key, _ := strings.Cut(name, ":")
	if kind != "file" && kind != "ceph" || !backend.ValidName(key) {
		return backend.Invalidf("option %s=%q: give file:NAME, a file of each node, or ceph:NAME, of the cluster's config-key store; never the passphrase itself",
			OptPassphrase, name)
	}
	return nil
}

func parseBool(option, value string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "", "no":
		return false, nil
	case "yes":
		return true, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, backend.Invalidf("option %s=%q: allowed are true and false", option, value)
	}
	return b, nil
}

// parseLabels reads "team=blue,tier=db".
func parseLabels(value string) (map[string]string, error) {
	if strings.TrimSpace(value) == "" {
		return nil, nil
	}
	labels := map[string]string{}
	for label := range strings.SplitSeq(value, ",") {
		key, text, _ := strings.Cut(label, "=")
		key = strings.TrimSpace(key)
		if _, twice := labels[key]; twice || key == "" {
			return nil, backend.Invalidf("option %s=%q: give KEY=TEXT,KEY=TEXT, each key once", OptLabels, value)
		}
		labels[key] = strings.TrimSpace(text)
	}
	return labels, nil
}

// spec names a source for a message.
func (s source) String() string {
	if s.snapshot == "" {
		return s.volume
	}
	return fmt.Sprintf("%s@%s", s.volume, s.snapshot)
}
