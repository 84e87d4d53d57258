package volume

import (
	"fmt"
	"math/bits"
	"regexp"

	"github.com/docker/go-units"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

const (
	mib = 1 << 20
	// maxSize keeps every sum of sizes far from overflow; no home has more.
	maxSize = 1 << 50
)

var (
	bareNumber = regexp.MustCompile(`^[0-9]{1,15}$`)
	withUnit   = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,6})? ?[kKmMgGtTpP]([iI]?[bB])?$`)
)

// parseSize reads a size with a unit (powers of 1024) or a bare number, which
// is MiB as it was with the plugins before this one. It rounds up to whole MiB.
func parseSize(option, value string) (uint64, error) {
	bytes, ok := parseBytes(value, mib)
	if !ok {
		return 0, backend.Invalidf("option %s=%q: give a number with a unit K, M, G or T (powers of 1024), for example 10G; a bare number is MiB", option, value)
	}
	if bytes == 0 || bytes > maxSize {
		return 0, backend.Invalidf("option %s=%q: allowed is more than 0 and at most 1024T", option, value)
	}
	return (bytes + mib - 1) / mib * mib, nil
}

// parseObjectSize reads an object size; a bare number is bytes, as for rbd.
func parseObjectSize(option, value string) (uint64, error) {
	bytes, ok := parseBytes(value, 1)
	if !ok || bits.OnesCount64(bytes) != 1 || bytes < 4<<10 || bytes > 32<<20 {
		return 0, backend.Invalidf("option %s=%q: allowed is a power of two from 4K to 32M, for example 4M", option, value)
	}
	return bytes, nil
}

func parseBytes(value string, bare uint64) (uint64, bool) {
	scale := uint64(1)
	switch {
	case bareNumber.MatchString(value):
		scale = bare
	case !withUnit.MatchString(value):
		return 0, false
	}
	n, err := units.RAMInBytes(value)
	if err != nil || n < 0 || uint64(n) > (1<<62)/scale {
		return 0, false
	}
	return uint64(n) * scale, true
}

// FormatSize is exact, so that two sizes that differ look different.
func FormatSize(bytes uint64) string {
	for _, unit := range []struct {
		size uint64
		name string
	}{{1 << 50, "PiB"}, {1 << 40, "TiB"}, {1 << 30, "GiB"}, {mib, "MiB"}, {1 << 10, "KiB"}} {
		if bytes != 0 && bytes%unit.size == 0 {
			return fmt.Sprintf("%d%s", bytes/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%dB", bytes)
}
