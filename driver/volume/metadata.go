package volume

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Keys of a volume's metadata, as an operator reads and mends them with rbd image-meta,
// under the prefix that package rbd gives them.
const (
	KeyFSType       = "fstype"
	KeyComplete     = "complete"
	KeyMkfsOptions  = "mkfsOptions"
	KeyMountOptions = "mountOptions"
	KeyUID          = "uid"
	KeyGID          = "gid"
	KeyMode         = "mode"
	KeyReadOnly     = "readonly"
	KeySealed       = "sealed"
	KeyRollback     = "rollback"
	KeyProtected    = "protected"
	KeyEncryption   = "encryption"
	KeyPassphrase   = "passphrase"
	KeyLabels       = "labels"
	KeyDescription  = "description"
	KeySubdirectory = "subdirectory"
)

// KeptKeys are those of what stays with the image for good. A clone has them from its
// parent, until its first mount.
var KeptKeys = []string{KeyMountOptions, KeyReadOnly, KeyProtected, KeyEncryption, KeyPassphrase, KeyLabels, KeyDescription, KeySubdirectory}

// inheritedKeys are those of what a copy has from the volume that it is made of, unless its
// options say otherwise.
var inheritedKeys = []string{KeyFSType, KeyMountOptions, KeyEncryption, KeyPassphrase, KeySubdirectory}

// Metadata is what a volume was asked to be, and what has become of that. It waits in the
// volume's record; what is needed for longer than the first mount then goes to the image's
// metadata. It is never taken back there, so that a write that comes late does no harm.
//
// An operator may have edited it, and a newer version may have keys that are not known
// here: they are kept.
type Metadata struct {
	FSType       string // on the image: the filesystem is complete; a clone has its parent's
	Complete     string // id of the image that is complete, whatever pending record of one comes back
	MkfsOptions  string
	MountOptions string // "" = those of the node that mounts
	UID          string // of the filesystem's root, as the mode; see Owner
	GID          string
	Mode         string
	ReadOnly     bool   // mounted read-only, on any number of nodes
	Sealed       string // id of the image that was made ready for that
	Rollback     string // name of a snapshot: a roll-back to it has not ended
	Protected    bool   // not removed
	Encryption   string // luks1, luks2; "" = none
	Passphrase   string // where it is
	Labels       string
	Description  string
	Subdirectory string // of the filesystem, which is the volume: rexray's are like that

	others map[string]string
}

// texts are the keys that are kept as they are.
func (m *Metadata) texts() map[string]*string {
	return map[string]*string{
		KeyFSType: &m.FSType, KeyComplete: &m.Complete, KeyMkfsOptions: &m.MkfsOptions, KeyMountOptions: &m.MountOptions,
		KeyUID: &m.UID, KeyGID: &m.GID, KeyMode: &m.Mode, KeySealed: &m.Sealed, KeyRollback: &m.Rollback,
		KeyEncryption: &m.Encryption, KeyPassphrase: &m.Passphrase, KeyLabels: &m.Labels, KeyDescription: &m.Description,
		KeySubdirectory: &m.Subdirectory,
	}
}

func (m *Metadata) flags() map[string]*bool {
	return map[string]*bool{KeyReadOnly: &m.ReadOnly, KeyProtected: &m.Protected}
}

// ParseMetadata reads metadata by its keys. A flag that says neither yes nor no is set, to
// be on the safe side.
func ParseMetadata(raw map[string]string) (m Metadata) {
	texts, flags := m.texts(), m.flags()
	for key, value := range raw {
		if text, ok := texts[key]; ok {
			*text = value
		} else if flag, ok := flags[key]; ok {
			on, err := parseBool(key, value)
			*flag = on || err != nil
		} else {
			if m.others == nil {
				m.others = map[string]string{}
			}
			m.others[key] = value
		}
	}
	return m
}

// Encode is metadata by its keys, without those that say nothing.
func (m Metadata) Encode() map[string]string {
	raw := map[string]string{}
	maps.Copy(raw, m.others)
	for key, text := range m.texts() {
		if *text != "" {
			raw[key] = *text
		}
	}
	for key, flag := range m.flags() {
		if *flag {
			raw[key] = "true"
		}
	}
	return raw
}

// With is m with what other metadata, by its keys, says otherwise.
func (m Metadata) With(raw map[string]string) Metadata {
	all := m.Encode()
	maps.Copy(all, raw)
	return ParseMetadata(all)
}

// Kept is what stays with the image for good.
func (m Metadata) Kept() Metadata { return m.only(KeptKeys) }

// Inherited is what a copy has from its original.
func (m Metadata) Inherited() Metadata { return m.only(inheritedKeys) }

func (m Metadata) only(keys []string) Metadata {
	raw := m.Encode()
	maps.DeleteFunc(raw, func(key, _ string) bool { return !slices.Contains(keys, key) })
	return ParseMetadata(raw)
}

// Equal tells whether two say the same.
func (m Metadata) Equal(other Metadata) bool { return maps.Equal(m.Encode(), other.Encode()) }

// Owner is what the root of the filesystem gets.
func (m Metadata) Owner() (owner backend.Owner, err error) {
	if owner.UID, err = parseID(KeyUID, m.UID); err != nil {
		return owner, err
	}
	if owner.GID, err = parseID(KeyGID, m.GID); err != nil {
		return owner, err
	}
	owner.Mode, err = parseMode(m.Mode)
	return owner, err
}

// IsSealed tells whether the volume of this image is read-only and ready for it. A copy has
// its original's metadata, but not its id.
func (m Metadata) IsSealed(image backend.Image) bool { return m.ReadOnly && m.Sealed == image.ID }

// CheckRollback is an error for a volume that has content of two times.
func (m Metadata) CheckRollback() error {
	if m.Rollback == "" {
		return nil
	}
	return fmt.Errorf("%w: a roll-back to snapshot %s was cut short; do it again", backend.ErrUnexpectedContent, m.Rollback)
}

// MarshalJSON writes it by its keys.
func (m Metadata) MarshalJSON() ([]byte, error) { return json.Marshal(m.Encode()) }

// UnmarshalJSON reads it by its keys.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	var raw map[string]string
	err := json.Unmarshal(data, &raw)
	*m = ParseMetadata(raw)
	return err
}

// Metadata is what Create leaves for the first mount, on whatever node.
func (o Spec) Metadata() Metadata {
	m := Metadata{
		FSType: o.FSType, MkfsOptions: o.MkfsOptions, MountOptions: o.MountOptions, UID: decimal(o.Owner.UID), GID: decimal(o.Owner.GID),
		ReadOnly: o.ReadOnly, Protected: o.Protected, Encryption: o.Encryption, Passphrase: o.Passphrase,
		Labels: o.Given[OptLabels], Description: o.Description,
	}
	if o.Owner.Mode != nil {
		m.Mode = fmt.Sprintf("%04o", *o.Owner.Mode)
	}
	return m
}

func decimal(n *uint32) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), 10)
}
