package driver

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

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

// mountOptions: the volume's own, or the setting if it is meant for this
// filesystem, or the built-in ones; and what the filesystem needs.
func (d *Driver) mountOptions(meta map[string]string, fstype string) string {
	return withNeeds(fstype, d.wantedOptions(meta, fstype))
}

func (d *Driver) wantedOptions(meta map[string]string, fstype string) string {
	if own := meta[metaMountOptions]; own != "" {
		return own
	}
	if fstype == defaultFSType(d.defaults) {
		// Checked by New.
		if setting, err := parseMountOptions(OptMountOptions, d.defaults[OptMountOptions]); err == nil && setting != "" {
			return setting
		}
	}
	return DefaultMountOptions[fstype]
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

// checkText is for what people write for people, in any alphabet.
func checkText(option, value string) error {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return backend.Invalidf("option %s=%q: allowed is one line of text", option, value)
	}
	return checkLength(option, value)
}

func checkLength(option, value string) error {
	if len(value) > 1024 {
		return backend.Invalidf("option %s: it has %d bytes, at most 1024 are allowed", option, len(value))
	}
	return nil
}

func checkWords(option, value string) error {
	for _, r := range value {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return backend.Invalidf("option %s=%q: allowed are printable ASCII characters", option, value)
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
		return nil, backend.Invalidf("option %s=%q: allowed is a number from 0 to 4294967294", option, value)
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
		return nil, backend.Invalidf("option %s=%q: allowed is an octal number as for chmod, for example 0750", OptMode, value)
	}
	mode := uint32(n)
	return &mode, nil
}
