package driver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Names of the options of docker volume create. The first five are those of
// wetopi's plugin; the last three are named as in Ceph's own tools.
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
)

// OptionNames are all options of docker volume create.
var OptionNames = []string{
	OptSize, OptFSType, OptMkfsOptions, OptMountOptions, OptUID, OptGID, OptMode,
	OptOrder, OptObjectSize, OptDataPool, OptFeatures, OptPool,
}

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
	dataPool     string
	features     []string
	given        map[string]string // what the request itself said
}

// parseOptions fills in defaults (by option name) and checks everything. mkfs
// and mount options of the defaults are meant for the default filesystem and
// reach no other: "-O mmp" must never come to mkfs.xfs.
func parseOptions(pool string, defaults, given map[string]string) (o options, err error) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(OptionNames, name) {
			return o, invalidf("option %.40q: allowed are %s", name, strings.Join(OptionNames, ", "))
		}
	}
	for name, value := range given {
		if err := checkWords(name, value); err != nil {
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
	if v := given[OptPool]; v != "" && v != pool {
		return o, invalidf("option %s=%q: this plugin's volumes are in pool %q (setting RBD_CONF_POOL)", OptPool, v, pool)
	}
	if o.fstype = get(OptFSType); minSize[o.fstype] == 0 {
		return o, invalidf("option %s=%q: allowed are btrfs, ext4, xfs", OptFSType, o.fstype)
	}
	if o.size, err = parseSize(OptSize, get(OptSize)); err != nil {
		return o, err
	}
	if least := minSize[o.fstype]; o.size < least {
		return o, invalidf("option %s=%q: %s needs at least %s", OptSize, get(OptSize), o.fstype, formatSize(least))
	}
	o.mkfsOptions = given[OptMkfsOptions]
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
	o.features, err = parseFeatures(get(OptFeatures))
	return o, err
}

// CheckDefaults checks the settings that are defaults of options, as they will
// be used by every Create.
func CheckDefaults(pool string, defaults map[string]string) error {
	_, err := parseOptions(pool, defaults, nil)
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

// parseLayout reads the two names of one thing: order 22 is object-size 4M.
func (o *options) parseLayout(defaults, given map[string]string) (err error) {
	for _, from := range []map[string]string{given, defaults} {
		order, size := from[OptOrder], from[OptObjectSize]
		switch {
		case order != "" && size != "":
			return invalidf("options %s and %s: they say the same thing, give one", OptOrder, OptObjectSize)
		case size != "":
			o.objectSize, err = parseObjectSize(OptObjectSize, size)
			return err
		case order != "":
			n, err := strconv.Atoi(order)
			if err != nil || n < 12 || n > 25 {
				return invalidf("option %s=%q: allowed is 12 (4K objects) to 25 (32M); 22 is Ceph's default of 4M", OptOrder, order)
			}
			o.objectSize = 1 << n
			return nil
		}
	}
	return nil
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

func checkWords(option, value string) error {
	for _, r := range value {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return invalidf("option %s=%q: allowed are printable ASCII characters", option, value)
		}
	}
	if len(value) > 1024 {
		return invalidf("option %s: it has %d bytes, at most 1024 are allowed", option, len(value))
	}
	return nil
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

// needs are the features that librbd demands of one another.
var needs = map[string]string{
	"layering": "", "exclusive-lock": "", "deep-flatten": "",
	"object-map": "exclusive-lock", "fast-diff": "object-map",
}

func parseFeatures(value string) ([]string, error) {
	features := strings.Split(value, ",")
	for _, f := range features {
		need, known := needs[f]
		if !known {
			return nil, invalidf("option %s=%q: %q is not a feature that the kernel maps; allowed are %s", OptFeatures, value, f,
				strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
		}
		if need != "" && !slices.Contains(features, need) {
			return nil, invalidf("option %s=%q: %s needs %s", OptFeatures, value, f, need)
		}
	}
	// Without it the kernel's client could read what is older than a fence: it
	// learns of the fence while it takes over the dead one's lock.
	if !slices.Contains(features, FeatureLock) {
		return nil, invalidf("option %s=%q: %s must be among them", OptFeatures, value, FeatureLock)
	}
	return features, nil
}

// agree tells whether an existing image is what the request asks for: only
// what the request itself says is compared.
func (o options) agree(image Image, meta map[string]string) error {
	differ := func(option, is string) error {
		return fmt.Errorf("%w with %s %s, but %s was asked for; remove that volume or leave the option out",
			ErrExists, option, is, o.given[option])
	}
	if o.given[OptSize] != "" && o.size != image.Size {
		return differ(OptSize, formatSize(image.Size))
	}
	if is := meta[metaFSType]; is != "" && o.given[OptFSType] != "" && is != o.fstype {
		return differ(OptFSType, is)
	}
	return nil
}
