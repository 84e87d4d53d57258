package driver

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// parseLayout reads the two names of one thing: order 22 is object-size 4M.
func (o *options) parseLayout(defaults, given map[string]string) (err error) {
	for _, from := range []map[string]string{given, defaults} {
		order, size := from[OptOrder], from[OptObjectSize]
		switch {
		case order != "" && size != "":
			return backend.Invalidf("options %s and %s: they say the same thing, give one", OptOrder, OptObjectSize)
		case size != "":
			o.objectSize, err = parseObjectSize(OptObjectSize, size)
			return err
		case order != "":
			n, err := strconv.Atoi(order)
			if err != nil || n < 12 || n > 25 {
				return backend.Invalidf("option %s=%q: allowed is 12 (4K objects) to 25 (32M); 22 is Ceph's default of 4M", OptOrder, order)
			}
			o.objectSize = 1 << n
			return nil
		}
	}
	return nil
}

// parseStripes reads how much of what is written in one go is put into one object
// before the next one's turn. Both are needed (librbd: EINVAL else).
func (o *options) parseStripes(unit, count string) (err error) {
	if unit == "" && count == "" {
		return nil
	}
	if unit == "" || count == "" {
		return backend.Invalidf("options %s and %s: give both or none", OptStripeUnit, OptStripeCount)
	}
	object := o.objectSize
	if object == 0 {
		object = mib4
	}
	if o.stripeUnit, err = parseObjectSize(OptStripeUnit, unit); err != nil {
		return err
	}
	if object%o.stripeUnit != 0 {
		return backend.Invalidf("option %s=%q: the object size, %s, must be a multiple of it", OptStripeUnit, unit, formatSize(object))
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil || n < 1 || n > 1024 {
		return backend.Invalidf("option %s=%q: allowed is a number from 1 to 1024", OptStripeCount, count)
	}
	o.stripeCount = n
	return nil
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
