package driver

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
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

// FeatureLock is the image feature without which nothing is mapped: with it
// Ceph's own clients fence a dead writer once more, before they write.
const FeatureLock = "exclusive-lock"

// BuiltinDefaults hold where neither an option nor a setting says otherwise.
var BuiltinDefaults = map[string]string{
	OptSize:     "512",
	OptFSType:   "ext4",
	OptFeatures: "layering,exclusive-lock,object-map,fast-diff,deep-flatten",
}

// DefaultMountOptions are those of a volume of a filesystem for which no
// setting was made. nouuid: xfs refuses a clone, or the dead remains of a lost
// mapping still mounted somewhere, for bearing the same UUID.
var DefaultMountOptions = map[string]string{
	"ext4":  "noatime,errors=remount-ro",
	"xfs":   "noatime,nouuid",
	"btrfs": "noatime",
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
	owner        Owner
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
func parseOptions(place Place, defaults, given map[string]string) (o options, err error) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(OptionNames, name) {
			return o, invalidf("option %.40q: allowed are %s", name, strings.Join(OptionNames, ", "))
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
	if err = place.accepts(given); err != nil {
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
		return o, invalidf("option %s=%q: it begins or ends with a blank", OptDescription, o.description)
	}
	if o.fstype = get(OptFSType); minSize[o.fstype] == 0 {
		return o, invalidf("option %s=%q: allowed are btrfs, ext4, xfs", OptFSType, o.fstype)
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
			return o, invalidf("option %s=%q: %s names a file, and a volume has no other than its own", OptMkfsOptions, o.mkfsOptions, word)
		}
		if o.fstype == "ext4" && strings.HasPrefix(word, "-d") { // copies a directory of the plugin's
			return o, invalidf("option %s=%q: -d is not allowed", OptMkfsOptions, o.mkfsOptions)
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
		return invalidf("option %s=%q: %s needs at least %s", OptSize, said, o.fstype, formatSize(least))
	}
	return nil
}

// CheckDefaults checks the settings that are defaults of options, as they will
// be used by every Create.
func CheckDefaults(defaults map[string]string) error {
	_, err := parseOptions(Place{}, defaults, nil)
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

// parseMountOptions takes "noatime,discard", and "--options=noatime" or
// "-o noatime" as older plugins passed them to mount(8). What would change
// another mount than the volume's own is refused.
func parseMountOptions(option, value string) (string, error) {
	v := strings.TrimSpace(value)
	for _, prefix := range []string{"--options=", "--options ", "-o"} {
		if rest, ok := strings.CutPrefix(v, prefix); ok {
			v = strings.TrimSpace(rest)
			break
		}
	}
	if strings.ContainsAny(v, " \t\n\x00") {
		return "", invalidf("option %s=%q: give mount options with commas and no spaces, for example noatime,discard", option, value)
	}
	if err := checkWords(option, v); err != nil {
		return "", err
	}
	for o := range strings.SplitSeq(v, ",") {
		switch strings.TrimPrefix(o, "r") {
		case "bind", "emount", "move", "shared", "private", "slave", "unbindable":
			return "", invalidf("option %s=%q: %s is not an option of a filesystem", option, value, o)
		case "o":
			return "", invalidf("option %s=%q: a new volume must be written once; mount it read-only into the container instead", option, value)
		}
		if strings.Contains(o, "/") { // device=, logdev=, journal_path=
			return "", invalidf("option %s=%q: %s names a file, and a volume has no other than its own", option, value, o)
		}
	}
	return v, nil
}

// checkText is for what people write for people, in any alphabet.
func checkText(option, value string) error {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return invalidf("option %s=%q: allowed is one line of text", option, value)
	}
	return checkLength(option, value)
}

func checkLength(option, value string) error {
	if len(value) > 1024 {
		return invalidf("option %s: it has %d bytes, at most 1024 are allowed", option, len(value))
	}
	return nil
}

func checkWords(option, value string) error {
	for _, r := range value {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return invalidf("option %s=%q: allowed are printable ASCII characters", option, value)
		}
	}
	return checkLength(option, value)
}

func parseID(option, value string) (*uint32, error) {
	if value == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n == 1<<32-1 { // -1 means "leave it" to chown(2)
		return nil, invalidf("option %s=%q: allowed is a number from 0 to 4294967294", option, value)
	}
	id := uint32(n)
	return &id, nil
}

func parseMode(value string) (*uint32, error) {
	if value == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(value, 8, 32)
	if err != nil || n > 0o7777 {
		return nil, invalidf("option %s=%q: allowed is an octal number as for chmod, for example 0750", OptMode, value)
	}
	mode := uint32(n)
	return &mode, nil
}
