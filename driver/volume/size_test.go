package volume

import (
	"math/bits"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

func TestSizesTakeUnitsAndBareMiB(t *testing.T) {
	const kib, gib, tib = 1 << 10, 1 << 30, 1 << 40
	for _, row := range []struct {
		name, value string
		want        uint64
	}{
		{"bare number is MiB, as with wetopi's plugin", "512", 512 * mib},
		{"bare number with zeros in front", "0001024", 1024 * mib},
		{"M", "512M", 512 * mib},
		{"MB is binary, as in Ceph", "512MB", 512 * mib},
		{"MiB", "512MiB", 512 * mib},
		{"small letters", "512mib", 512 * mib},
		{"G", "10G", 10 * gib},
		{"a blank before the unit", "10 GB", 10 * gib},
		{"T", "2T", 2 * tib},
		{"fraction", "1.5G", 1536 * mib},
		{"the largest", "1024T", maxSize},
		{"the largest, bare", "1073741824", maxSize},
		{"the largest, in P", "1P", maxSize},
		{"rounded up to a whole MiB", "1025K", 2 * mib},
		{"less than one MiB", "1K", mib},
		{"a fraction of a MiB", "1.000001M", 2 * mib},
		{"K", "2048K", 2048 * kib},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := parseSize(OptSize, row.value)
			if err != nil || got != row.want {
				t.Errorf("%q: got %d, %v; want %d", row.value, got, err, row.want)
			}
		})
	}
}

func TestSizesRefused(t *testing.T) {
	const (
		noNumber = `: give a number with a unit K, M, G or T (powers of 1024), for example 10G; a bare number is MiB`
		noRange  = `: allowed is more than 0 and at most 1024T`
	)
	for _, row := range []struct{ name, value, why string }{
		{"empty", "", noNumber},
		{"no number", "big", noNumber},
		{"unit alone", "G", noNumber},
		{"unknown unit", "10X", noNumber},
		{"bytes have no unit", "10B", noNumber},
		{"the unit of Kubernetes", "10Gi", noNumber},
		{"fraction without unit", "0.5", noNumber},
		{"two points", "1.2.3G", noNumber},
		{"point without digits", "1.G", noNumber},
		{"sign", "-1", noNumber},
		{"plus", "+1", noNumber},
		{"hexadecimal", "0x10", noNumber},
		{"exponent", "1e3", noNumber},
		{"infinity", "InfG", noNumber},
		{"comma", "1,5G", noNumber},
		{"another alphabet's digits", "١G", noNumber},
		{"two blanks", "10  G", noNumber},
		{"line feed at the end", "10G\n", noNumber},
		{"zero", "0", noRange},
		{"zero with unit", "0G", noRange},
		{"less than a byte", "0.000001K", noRange},
		{"above the largest", "1025T", noRange},
		{"above the largest, bare", "1073741825", noRange},
		{"just above the largest", "1024.000001T", noRange},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := parseSize(OptSize, row.value)
			backendtest.Invalid(t, err, `invalid option size=`+quoted(row.value)+row.why)
		})
	}
}

// No sum of sizes may come near to what a number can hold.
func TestSizesFarTooLargeAreRefused(t *testing.T) {
	for _, value := range []string{
		"999999999999999", "9999999999999999", "18446744073709551616", "99999999999P", "999999999999999.999999P", "16777216T",
		"17592186044417", // 2^64 + 2^20 bytes
	} {
		if got, err := parseSize(OptSize, value); err == nil {
			t.Errorf("%s: accepted as %d", value, got)
		} else {
			backendtest.OneInvalidLine(t, err)
		}
	}
}

func TestObjectSizes(t *testing.T) {
	for value, want := range map[string]uint64{
		"4K": 4 << 10, "4096": 4 << 10, "4M": 4 << 20, "4MiB": 4 << 20, "4194304": 4 << 20, "32M": 32 << 20, "0.5M": 512 << 10,
	} {
		if got, err := parseObjectSize(OptObjectSize, value); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", value, got, err, want)
		}
	}
	for _, value := range []string{"", "0", "22", "2K", "64M", "3M", "4M4", "4 M ", "-4M", "1G", "99999999999P"} {
		_, err := parseObjectSize(OptObjectSize, value)
		backendtest.Invalid(t, err, `invalid option object-size=`+quoted(value)+`: allowed is a power of two from 4K to 32M, for example 4M`)
	}
}

func TestSizesAreShownInTheirUnit(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "0B", 8 * mib: "8MiB", 300 * mib: "300MiB", 512 * mib: "512MiB", 10 << 30: "10GiB", maxSize: "1PiB",
	} {
		if got := FormatSize(bytes); got != want {
			t.Errorf("%d: got %s, want %s", bytes, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, value := range []string{
		"512", "10G", "1.5G", "1 GB", "0", "-1", "1073741825", "99999999999P", "0.000001K", "1024.000001T", "4M", "4096", "10Gi", "١", "1e9", "\n",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		size, err := parseSize("fuzz", value)
		switch {
		case err != nil:
			backendtest.OneInvalidLine(t, err)
		case size == 0 || size > maxSize || size%mib != 0:
			t.Errorf("%q: accepted as %d", value, size)
		}
		object, err := parseObjectSize("fuzz", value)
		switch {
		case err != nil:
			backendtest.OneInvalidLine(t, err)
		case bits.OnesCount64(object) != 1 || object < 4<<10 || object > 32<<20:
			t.Errorf("%q: accepted as an object size of %d", value, object)
		}
	})
}
