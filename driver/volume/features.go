package volume

import (
	"maps"
	"slices"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

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
			return nil, backend.Invalidf("option %s=%q: %q is not a feature that the kernel maps; allowed are %s", OptFeatures, value, f,
				strings.Join(slices.Sorted(maps.Keys(needs)), ", "))
		}
		if need != "" && !slices.Contains(features, need) {
			return nil, backend.Invalidf("option %s=%q: %s needs %s", OptFeatures, value, f, need)
		}
	}
	// Without it the kernel's client could read what is older than a fence: it
	// learns of the fence while it takes over the dead one's lock.
	if !slices.Contains(features, backend.FeatureLock) {
		return nil, backend.Invalidf("option %s=%q: %s must be among them", OptFeatures, value, backend.FeatureLock)
	}
	return features, nil
}
