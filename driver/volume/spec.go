package volume

import (
	"maps"
	"slices"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Names of the options of docker volume create. The first five are those of
// wetopi's plugin; what is Ceph's is named as in Ceph's own tools.
const (
	OptSize         = "size"
	OptFSType       = "fstype"
	OptMkfsOptions  = "mkfsOptions"
	OptMountOptions = "mountOptions"
	OptOrder        = "order"
	OptUID          = "uid"
	OptGID          = "gid"
	OptMode         = "mode"
	OptPool         = "pool"
	OptDataPool     = "data-pool"
	OptObjectSize   = "object-size"
	OptFeatures     = "image-feature"
	OptNamespace    = "namespace"
	OptStripeUnit   = "stripe-unit"
	OptStripeCount  = "stripe-count"
	OptFrom         = "from"
	OptSnapshot     = "snapshot"
	OptReadOnly     = "readonly"
	OptProtected    = "protected"
	OptEncryption   = "encryption"
	OptPassphrase   = "passphrase"
	OptLabels       = "labels"
	OptDescription  = "description"
)

// OptionNames are all options of docker volume create.
var OptionNames = []string{
	OptSize, OptFSType, OptMkfsOptions, OptMountOptions, OptUID, OptGID, OptMode,
	OptFrom, OptSnapshot, OptReadOnly, OptProtected, OptEncryption, OptPassphrase, OptLabels, OptDescription,
	OptPool, OptNamespace, OptDataPool, OptOrder, OptObjectSize, OptStripeUnit, OptStripeCount, OptFeatures,
}

// mib4 is Ceph's own object size.
const mib4 = 4 * mib

// BuiltinDefaults hold where neither an option nor a setting says otherwise.
var BuiltinDefaults = map[string]string{
	OptSize:     "512",
	OptFSType:   "ext4",
	OptFeatures: "layering,exclusive-lock,object-map,fast-diff,deep-flatten",
}

// minSize is what mkfs of e2fsprogs 1.47, xfsprogs 6.13 and btrfs-progs 6.14
// accept with the options used here. ext4 below 8 MiB would have no journal.
var minSize = map[string]uint64{
	"ext4":  8 * mib,
	"xfs":   300 * mib,
	"btrfs": 128 * mib,
}

// Spec is what the options of one volume say, parsed and with defaults filled in.
type Spec struct {
	Size         uint64
	FSType       string
	MkfsOptions  string
	MountOptions string // "" = whatever the setting is on the node that mounts
	Owner        backend.Owner
	ObjectSize   uint64
	StripeUnit   uint64
	StripeCount  uint64
	DataPool     string
	Features     []string
	Source       Source
	ReadOnly     bool
	Protected    bool
	Encryption   string // "" = none, or as that of which it is a clone
	Passphrase   string // name of it; "" = as before
	Labels       map[string]string
	Description  string
	Given        map[string]string // what the request itself said
}

// Source names what a volume is to be a copy of.
type Source struct {
	Volume   string // "" = a new, empty volume
	Snapshot string // "" = as it is now
}

// ParseSpec fills in defaults (by option name) and checks everything. mkfs
// and mount options of the defaults are meant for the default filesystem and
// reach no other: "-O mmp" must never come to mkfs.xfs.
func ParseSpec(pool backend.PoolSpec, defaults, given map[string]string) (o Spec, err error) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(OptionNames, name) {
			return o, backend.Invalidf("option %.40q: allowed are %s", name, strings.Join(OptionNames, ", "))
		}
	}
	for name, value := range given {
		check := checkWords
		if name == OptLabels || name == OptDescription { // for people
			check = checkText
		}
		if err := check(name, value); err != nil {
			return o, err
		}
	}
	get := func(name string) string {
		for _, from := range []map[string]string{given, defaults, BuiltinDefaults} {
			if v := strings.TrimSpace(from[name]); v != "" {
				return v
			}
		}
		return ""
	}
	o.Given = given
	if err = Accepts(pool, given); err != nil {
		return o, err
	}
	if err = o.parseSource(given); err != nil {
		return o, err
	}
	if err = o.parseEncryption(defaults); err != nil {
		return o, err
	}
	if o.Labels, err = ParseLabels(given[OptLabels]); err != nil {
		return o, err
	}
	if o.Description = given[OptDescription]; strings.TrimSpace(o.Description) != o.Description {
		return o, backend.Invalidf("option %s=%q: it begins or ends with a blank", OptDescription, o.Description)
	}
	if o.FSType = get(OptFSType); minSize[o.FSType] == 0 {
		return o, backend.Invalidf("option %s=%q: allowed are btrfs, ext4, xfs", OptFSType, o.FSType)
	}
	if o.Size, err = parseSize(OptSize, get(OptSize)); err != nil {
		return o, err
	}
	if o.Source.Volume != "" && strings.TrimSpace(given[OptSize]) == "" {
		o.Size = 0 // as large as what it is a copy of
	}
	o.MkfsOptions = given[OptMkfsOptions]
	if o.Source.Volume != "" {
		if strings.TrimSpace(given[OptFSType]) == "" {
			o.FSType = ""
		}
		defaults = maps.Clone(defaults)
		delete(defaults, OptMkfsOptions)
	}
	if _, set := given[OptMkfsOptions]; !set && o.FSType == defaultFSType(defaults) {
		o.MkfsOptions = defaults[OptMkfsOptions]
	}
	if err = checkWords(OptMkfsOptions, o.MkfsOptions); err != nil {
		return o, err
	}
	for word := range strings.FieldsSeq(o.MkfsOptions) {
		if strings.Contains(word, "/") { // mkfs.btrfs formats all devices that it is told, however they are named
			return o, backend.Invalidf("option %s=%q: %s names a file, and a volume has no other than its own", OptMkfsOptions, o.MkfsOptions, word)
		}
		if o.FSType == "ext4" && strings.HasPrefix(word, "-d") { // copies a directory of the plugin's
			return o, backend.Invalidf("option %s=%q: -d is not allowed", OptMkfsOptions, o.MkfsOptions)
		}
	}
	if o.MountOptions, err = parseMountOptions(OptMountOptions, given[OptMountOptions]); err != nil {
		return o, err
	}
	if o.Owner.UID, err = parseID(OptUID, given[OptUID]); err != nil {
		return o, err
	}
	if o.Owner.GID, err = parseID(OptGID, given[OptGID]); err != nil {
		return o, err
	}
	if o.Owner.Mode, err = parseMode(given[OptMode]); err != nil {
		return o, err
	}
	o.DataPool = get(OptDataPool)
	if err = o.parseLayout(defaults, given); err != nil {
		return o, err
	}
	if err = o.parseStripes(get(OptStripeUnit), get(OptStripeCount)); err != nil {
		return o, err
	}
	if err = o.checkSize(get(OptSize)); err != nil {
		return o, err
	}
	o.Features, err = parseFeatures(get(OptFeatures))
	return o, err
}

// checkSize: the header of an encrypted image is not the filesystem's.
func (o *Spec) checkSize(said string) error {
	least := minSize[o.FSType]
	if o.Encryption != "" {
		least += o.headerSize()
	}
	if o.Size < least && o.Source.Volume == "" {
		return backend.Invalidf("option %s=%q: %s needs at least %s", OptSize, said, o.FSType, FormatSize(least))
	}
	return nil
}

// CheckDefaults checks the settings that are defaults of options, as they will
// be used by every Create.
func CheckDefaults(defaults map[string]string) error {
	_, err := ParseSpec(backend.PoolSpec{}, defaults, nil)
	if err == nil {
		_, err = parseMountOptions(OptMountOptions, defaults[OptMountOptions])
	}
	return err
}

func defaultFSType(defaults map[string]string) string {
	if v := strings.TrimSpace(defaults[OptFSType]); v != "" {
		return v
	}
	return BuiltinDefaults[OptFSType]
}
