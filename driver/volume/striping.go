package volume

import (
	"strconv"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// parseLayout reads the two names of one thing: order 22 is object-size 4M.
func (o *Spec) parseLayout(defaults, given map[string]string) (err error) {
	for _, from := range []map[string]string{given, defaults} {
		order, size := from[OptOrder], from[OptObjectSize]
		switch {
		case order != "" && size != "":
			return backend.Invalidf("options %s and %s: they say the same thing, give one", OptOrder, OptObjectSize)
		case size != "":
			o.ObjectSize, err = parseObjectSize(OptObjectSize, size)
			return err
		case order != "":
			n, err := strconv.Atoi(order)
			if err != nil || n < 12 || n > 25 {
				return backend.Invalidf("option %s=%q: allowed is 12 (4K objects) to 25 (32M); 22 is Ceph's default of 4M", OptOrder, order)
			}
			o.ObjectSize = 1 << n
			return nil
		}
	}
	return nil
}

// parseStripes reads how much of what is written in one go is put into one object
// before the next one's turn. Both are needed (librbd: EINVAL else).
func (o *Spec) parseStripes(unit, count string) (err error) {
	if unit == "" && count == "" {
		return nil
	}
	if unit == "" || count == "" {
		return backend.Invalidf("options %s and %s: give both or none", OptStripeUnit, OptStripeCount)
	}
	object := o.ObjectSize
	if object == 0 {
		object = mib4
	}
	if o.StripeUnit, err = parseObjectSize(OptStripeUnit, unit); err != nil {
		return err
	}
	if object%o.StripeUnit != 0 {
		return backend.Invalidf("option %s=%q: the object size, %s, must be a multiple of it", OptStripeUnit, unit, FormatSize(object))
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil || n < 1 || n > 1024 {
		return backend.Invalidf("option %s=%q: allowed is a number from 1 to 1024", OptStripeCount, count)
	}
	o.StripeCount = n
	return nil
}
