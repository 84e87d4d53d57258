package driver

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

// DefaultMountOptions are those of a volume of a filesystem for which no
// setting was made.
var DefaultMountOptions = map[string]string{
	"ext4":  "noatime,errors=remount-ro",
	"xfs":   "noatime,nouuid",
	"btrfs": "noatime",
}

// neededOptions are among the mount options of every volume, whatever its own are.
// errors=remount-ro: what the superblock says may be that the node panics, or that
// the filesystem goes on. nouuid: xfs refuses a clone, or the dead remains of a lost
// mapping still mounted somewhere, for bearing the same UUID.
var neededOptions = map[string]string{
	"ext2": "errors=remount-ro", "ext3": "errors=remount-ro", "ext4": "errors=remount-ro",
	"xfs": "nouuid",
}

// minSize is what mkfs of e2fsprogs 1.47, xfsprogs 6.13 and btrfs-progs 6.14
// accept with the options used here. ext4 below 8 MiB would have no journal.
var minSize = map[string]uint64{
	"ext4":  8 * mib,
	"xfs":   300 * mib,
	"btrfs": 128 * mib,
}

// options are the options of one volume, parsed and with defaults filled in.
type options struct {
	size         uint64
	fstype       string
	mkfsOptions  string
	mountOptions string // "" = whatever the setting is on the node that mounts
	owner        backend.Owner
	objectSize   uint64
	stripeUnit   uint64
	stripeCount  uint64
	dataPool     string
	features     []string
	from         source
	readOnly     bool
	protected    bool
	encryption   string // "" = none, or as that of which it is a clone
	passphrase   string // name of it; "" = as before
	labels       map[string]string
	description  string
	given        map[string]string // what the request itself said
}

// source names what a volume is to be a copy of.
type source struct {
	volume   string // "" = a new, empty volume
	snapshot string // "" = as it is now
}

// parseOptions fills in defaults (by option name) and checks everything. mkfs
// and mount options of the defaults are meant for the default filesystem and
// reach no other: "-O mmp" must never come to mkfs.xfs.
func parseOptions(place backend.Place, defaults, given map[string]string) (o options, err error) {
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
	o.given = given
	if err = accepts(place, given); err != nil {
		return o, err
	}
	if err = o.parseSource(given); err != nil {
		return o, err
	}
	if err = o.parseEncryption(defaults); err != nil {
		return o, err
	}
	if o.labels, err = parseLabels(given[OptLabels]); err != nil {
		return o, err
	}
	if o.description = given[OptDescription]; strings.TrimSpace(o.description) != o.description {
		return o, backend.Invalidf("option %s=%q: it begins or ends with a blank", OptDescription, o.description)
	}
	if o.fstype = get(OptFSType); minSize[o.fstype] == 0 {
		return o, backend.Invalidf("option %s=%q: allowed are btrfs, ext4, xfs", OptFSType, o.fstype)
	}
	if o.size, err = parseSize(OptSize, get(OptSize)); err != nil {
		return o, err
	}
	if o.from.volume != "" && strings.TrimSpace(given[OptSize]) == "" {
		o.size = 0 // as large as what it is a copy of
	}
	o.mkfsOptions = given[OptMkfsOptions]
	if o.from.volume != "" {
		if strings.TrimSpace(given[OptFSType]) == "" {
			o.fstype = ""
		}
		defaults = maps.Clone(defaults)
		delete(defaults, OptMkfsOptions)
	}
	if _, set := given[OptMkfsOptions]; !set && o.fstype == defaultFSType(defaults) {
		o.mkfsOptions = defaults[OptMkfsOptions]
	}
	if err = checkWords(OptMkfsOptions, o.mkfsOptions); err != nil {
		return o, err
	}
	for word := range strings.FieldsSeq(o.mkfsOptions) {
		if strings.Contains(word, "/") { // mkfs.btrfs formats all devices that it is told, however they are named
			return o, backend.Invalidf("option %s=%q: %s names a file, and a volume has no other than its own", OptMkfsOptions, o.mkfsOptions, word)
		}
		if o.fstype == "ext4" && strings.HasPrefix(word, "-d") { // copies a directory of the plugin's
			return o, backend.Invalidf("option %s=%q: -d is not allowed", OptMkfsOptions, o.mkfsOptions)
		}
	}
	if o.mountOptions, err = parseMountOptions(OptMountOptions, given[OptMountOptions]); err != nil {
		return o, err
	}
	if o.owner.UID, err = parseID(OptUID, given[OptUID]); err != nil {
		return o, err
	}
	if o.owner.GID, err = parseID(OptGID, given[OptGID]); err != nil {
		return o, err
	}
	if o.owner.Mode, err = parseMode(given[OptMode]); err != nil {
		return o, err
	}
	o.dataPool = get(OptDataPool)
	if err = o.parseLayout(defaults, given); err != nil {
		return o, err
	}
	if err = o.parseStripes(get(OptStripeUnit), get(OptStripeCount)); err != nil {
		return o, err
	}
	if err = o.checkSize(get(OptSize)); err != nil {
		return o, err
	}
	o.features, err = parseFeatures(get(OptFeatures))
	return o, err
}

// checkSize: the header of an encrypted image is not the filesystem's.
func (o *options) checkSize(said string) error {
	least := minSize[o.fstype]
	if o.encryption != "" {
		least += o.header()
	}
	if o.size < least && o.from.volume == "" {
		return backend.Invalidf("option %s=%q: %s needs at least %s", OptSize, said, o.fstype, formatSize(least))
	}
	return nil
}

// CheckDefaults checks the settings that are defaults of options, as they will
// be used by every Create.
func CheckDefaults(defaults map[string]string) error {
	_, err := parseOptions(backend.Place{}, defaults, nil)
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
