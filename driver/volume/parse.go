package volume

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

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

// ParseLabels reads "team=blue,tier=db".
func ParseLabels(value string) (map[string]string, error) {
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
