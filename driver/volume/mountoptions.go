package volume

import (
	"cmp"
	"slices"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

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
		return "", backend.Invalidf("option %s=%q: give mount options with commas and no spaces, for example noatime,discard", option, value)
	}
	if err := checkWords(option, v); err != nil {
		return "", err
	}
	for o := range strings.SplitSeq(v, ",") {
		switch strings.TrimPrefix(o, "r") {
		case "bind", "emount", "move", "shared", "private", "slave", "unbindable":
			return "", backend.Invalidf("option %s=%q: %s is not an option of a filesystem", option, value, o)
		case "o":
			return "", backend.Invalidf("option %s=%q: a new volume must be written once; mount it read-only into the container instead", option, value)
		}
		if strings.Contains(o, "/") { // device=, logdev=, journal_path=
			return "", backend.Invalidf("option %s=%q: %s names a file, and a volume has no other than its own", option, value, o)
		}
	}
	return v, nil
}

// MountOptions are those of a volume: its own or, if they are meant for this filesystem,
// those of the setting, or the built-in ones; and what the filesystem needs.
func MountOptions(own, fstype string, defaults map[string]string) string {
	if own == "" && fstype == defaultFSType(defaults) {
		// What is not valid CheckDefaults has refused.
		own, _ = parseMountOptions(OptMountOptions, defaults[OptMountOptions])
	}
	return withNeeds(fstype, cmp.Or(own, DefaultMountOptions[fstype]))
}

// withNeeds adds to the mount options of a volume what its filesystem needs. Of an
// option that takes a value the one needed is the only one.
func withNeeds(fstype, options string) string {
	need := neededOptions[fstype]
	if need == "" {
		return options
	}
	name, _, _ := strings.Cut(need, "=")
	words := slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return o == "" || o != need && strings.HasPrefix(o, name+"=")
	})
	if !slices.Contains(words, need) {
		words = append(words, need)
	}
	return strings.Join(words, ",")
}
