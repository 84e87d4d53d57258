package volume

import (
	"errors"
	"maps"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

func quoted(s string) string { return strconv.Quote(s) }

func ptr(n uint32) *uint32 { return &n }

var allFeatures = []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"}

type opts = map[string]string

func TestOptionsAndTheirDefaults(t *testing.T) {
	for _, row := range []struct {
		name            string
		defaults, given opts
		want            Spec
	}{
		{"nothing said", nil, nil, Spec{Size: 512 * mib, FSType: "ext4"}},
		{"blank values are none", nil, opts{OptSize: " ", OptFSType: "", OptOrder: "", OptPool: "", OptUID: "", OptMode: ""},
			Spec{Size: 512 * mib, FSType: "ext4"}},
		{"as wetopi's users say it",
			nil, opts{OptSize: "1024", OptFSType: "ext4", OptMkfsOptions: "-O mmp", OptMountOptions: "--options=noatime", OptOrder: "22"},
			Spec{Size: 1 << 30, FSType: "ext4", MkfsOptions: "-O mmp", MountOptions: "noatime", ObjectSize: 4 << 20}},
		{"settings stand in",
			opts{OptSize: "2G", OptFSType: "xfs", OptMkfsOptions: "-m reflink=0", OptOrder: "23", OptDataPool: "ec", OptFeatures: "exclusive-lock"}, nil,
			Spec{Size: 2 << 30, FSType: "xfs", MkfsOptions: "-m reflink=0", ObjectSize: 8 << 20, DataPool: "ec", Features: []string{"exclusive-lock"}}},
		{"options come before settings",
			opts{OptSize: "2G", OptFSType: "xfs", OptMkfsOptions: "-m reflink=0", OptDataPool: "ec", OptFeatures: "exclusive-lock"},
			opts{OptSize: "3G", OptFSType: "xfs", OptMkfsOptions: "-m crc=1", OptDataPool: "ec2", OptFeatures: "layering,exclusive-lock"},
			Spec{Size: 3 << 30, FSType: "xfs", MkfsOptions: "-m crc=1", DataPool: "ec2", Features: []string{"layering", "exclusive-lock"}}},

		{"mkfs setting of ext4 does not reach xfs",
			opts{OptMkfsOptions: "-O mmp"}, opts{OptFSType: "xfs"}, Spec{Size: 512 * mib, FSType: "xfs"}},
		{"mkfs setting of ext4 does not reach btrfs",
			opts{OptFSType: "ext4", OptMkfsOptions: "-O mmp"}, opts{OptFSType: "btrfs"}, Spec{Size: 512 * mib, FSType: "btrfs"}},
		{"mkfs setting of xfs does not reach ext4",
			opts{OptFSType: "xfs", OptMkfsOptions: "-m reflink=0"}, opts{OptFSType: "ext4"}, Spec{Size: 512 * mib, FSType: "ext4"}},
		{"mkfs setting reaches its filesystem when that is named",
			opts{OptMkfsOptions: "-O mmp"}, opts{OptFSType: "ext4"}, Spec{Size: 512 * mib, FSType: "ext4", MkfsOptions: "-O mmp"}},
		{"settings with blanks around them",
			opts{OptFSType: " xfs ", OptMkfsOptions: "-m reflink=0", OptSize: " 1G "}, nil,
			Spec{Size: 1 << 30, FSType: "xfs", MkfsOptions: "-m reflink=0"}},
		{"an empty option takes the mkfs setting away",
			opts{OptMkfsOptions: "-O mmp"}, opts{OptMkfsOptions: ""}, Spec{Size: 512 * mib, FSType: "ext4"}},
		{"the mount setting is left to the node that mounts",
			opts{OptMountOptions: "noatime,nobarrier"}, nil, Spec{Size: 512 * mib, FSType: "ext4"}},

		{"order", nil, opts{OptOrder: "12"}, Spec{Size: 512 * mib, FSType: "ext4", ObjectSize: 4 << 10}},
		{"largest order", nil, opts{OptOrder: "25"}, Spec{Size: 512 * mib, FSType: "ext4", ObjectSize: 32 << 20}},
		{"object-size before the setting of order",
			opts{OptOrder: "23"}, opts{OptObjectSize: "4M"}, Spec{Size: 512 * mib, FSType: "ext4", ObjectSize: 4 << 20}},
		{"order before the setting of object-size",
			opts{OptObjectSize: "8M"}, opts{OptOrder: "22"}, Spec{Size: 512 * mib, FSType: "ext4", ObjectSize: 4 << 20}},

		{"the pool there is", nil, opts{OptPool: "rbd"}, Spec{Size: 512 * mib, FSType: "ext4"}},
		{"owner", nil, opts{OptUID: "0", OptGID: "4294967294", OptMode: "2770"},
			Spec{Size: 512 * mib, FSType: "ext4", Owner: backend.Owner{UID: ptr(0), GID: ptr(4294967294), Mode: ptr(0o2770)}}},
		{"mode with a zero in front", nil, opts{OptMode: "0750"}, Spec{Size: 512 * mib, FSType: "ext4", Owner: backend.Owner{Mode: ptr(0o750)}}},
		{"largest mode", nil, opts{OptMode: "07777"}, Spec{Size: 512 * mib, FSType: "ext4", Owner: backend.Owner{Mode: ptr(0o7777)}}},

		{"smallest ext4", nil, opts{OptSize: "8"}, Spec{Size: 8 * mib, FSType: "ext4"}},
		{"smallest xfs", nil, opts{OptSize: "300M", OptFSType: "xfs"}, Spec{Size: 300 * mib, FSType: "xfs"}},
		{"smallest btrfs", nil, opts{OptSize: "128", OptFSType: "btrfs"}, Spec{Size: 128 * mib, FSType: "btrfs"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := ParseSpec(backend.PoolSpec{Pool: "rbd"}, row.defaults, row.given)
			if err != nil {
				t.Fatal(err)
			}
			if row.want.Features == nil {
				row.want.Features = allFeatures
			}
			row.want.Given = row.given
			if !reflect.DeepEqual(got, row.want) {
				t.Errorf("\n got %+v\nwant %+v", got, row.want)
			}
		})
	}
}

func TestOptionsRefused(t *testing.T) {
	const (
		order    = `: allowed is 12 (4K objects) to 25 (32M); 22 is Ceph's default of 4M`
		twice    = `invalid options order and object-size: they say the same thing, give one`
		id       = `: allowed is a number from 0 to 4294967294`
		mode     = `: allowed is an octal number as for chmod, for example 0750`
		features = ` is not a feature that the kernel maps; allowed are deep-flatten, exclusive-lock, fast-diff, layering, object-map`
		ascii    = `: allowed are printable ASCII characters`
		rest     = `from, snapshot, readonly, protected, encryption, passphrase, labels, description, ` +
			`pool, namespace, data-pool, order, object-size, stripe-unit, stripe-count, image-feature`
	)
	for _, row := range []struct {
		name            string
		defaults, given opts
		want            string
	}{
		{"unknown", nil, opts{"sise": "1G"}, `invalid option "sise": allowed are size, fstype, mkfsOptions, mountOptions, uid, gid, mode, ` + rest},
		{"other capitals", nil, opts{"fsType": "xfs"}, `invalid option "fsType": allowed are size, fstype, mkfsOptions, mountOptions, uid, gid, mode, ` + rest},
		{"another pool", nil, opts{OptPool: "ssd"}, `invalid option pool="ssd": this plugin's volumes are in pool "rbd" (settings RBD_CONF_POOL and RBD_POOLS)`},
		{"filesystem", nil, opts{OptFSType: "zfs"}, `invalid option fstype="zfs": allowed are btrfs, ext4, xfs`},
		{"filesystem in capitals", nil, opts{OptFSType: "EXT4"}, `invalid option fstype="EXT4": allowed are btrfs, ext4, xfs`},
		{"size", nil, opts{OptSize: "10X"}, `invalid option size="10X": give a number with a unit K, M, G or T (powers of 1024), for example 10G; a bare number is MiB`},
		{"too small for ext4", nil, opts{OptSize: "7M"}, `invalid option size="7M": ext4 needs at least 8MiB`},
		{"too small for xfs", nil, opts{OptFSType: "xfs", OptSize: "299"}, `invalid option size="299": xfs needs at least 300MiB`},
		{"too small for btrfs", nil, opts{OptFSType: "btrfs", OptSize: "100M"}, `invalid option size="100M": btrfs needs at least 128MiB`},
		{"setting too small for this filesystem", opts{OptSize: "64"}, opts{OptFSType: "xfs"}, `invalid option size="64": xfs needs at least 300MiB`},
		{"mkfs options in two lines", nil, opts{OptMkfsOptions: "-O\nmmp"}, `invalid option mkfsOptions="-O\nmmp"` + ascii},
		{"mkfs options with a letter of another alphabet", nil, opts{OptMkfsOptions: "-L größe"}, `invalid option mkfsOptions="-L größe"` + ascii},
		{"mkfs options too long", nil, opts{OptMkfsOptions: strings.Repeat("x", 1025)}, `invalid option mkfsOptions: it has 1025 bytes, at most 1024 are allowed`},
		{"mount options", nil, opts{OptMountOptions: "bind"}, `invalid option mountOptions="bind": bind is not an option of a filesystem`},
		{"uid not a number", nil, opts{OptUID: "root"}, `invalid option uid="root"` + id},
		{"uid leave-it", nil, opts{OptUID: "4294967295"}, `invalid option uid="4294967295"` + id},
		{"gid negative", nil, opts{OptGID: "-1"}, `invalid option gid="-1"` + id},
		{"gid too large", nil, opts{OptGID: "4294967296"}, `invalid option gid="4294967296"` + id},
		{"mode not octal", nil, opts{OptMode: "0799"}, `invalid option mode="0799"` + mode},
		{"mode in letters", nil, opts{OptMode: "u=rwx"}, `invalid option mode="u=rwx"` + mode},
		{"mode too large", nil, opts{OptMode: "10000"}, `invalid option mode="10000"` + mode},
		{"order too small", nil, opts{OptOrder: "11"}, `invalid option order="11"` + order},
		{"order too large", nil, opts{OptOrder: "26"}, `invalid option order="26"` + order},
		{"order that is a size", nil, opts{OptOrder: "4M"}, `invalid option order="4M"` + order},
		{"object size", nil, opts{OptObjectSize: "3M"}, `invalid option object-size="3M": allowed is a power of two from 4K to 32M, for example 4M`},
		{"order and object size", nil, opts{OptOrder: "22", OptObjectSize: "4M"}, twice},
		{"order and object size as settings", opts{OptOrder: "22", OptObjectSize: "4M"}, nil, twice},
		{"feature krbd does not know", nil, opts{OptFeatures: "layering,journaling"}, `invalid option image-feature="layering,journaling": "journaling"` + features},
		{"features with blanks", nil, opts{OptFeatures: "layering, exclusive-lock"}, `invalid option image-feature="layering, exclusive-lock": " exclusive-lock"` + features},
		{"features with a comma too many", nil, opts{OptFeatures: "layering,"}, `invalid option image-feature="layering,": ""` + features},
		{"object-map alone", nil, opts{OptFeatures: "layering,object-map"}, `invalid option image-feature="layering,object-map": object-map needs exclusive-lock`},
		{"fast-diff without object-map", nil, opts{OptFeatures: "exclusive-lock,fast-diff"},
			`invalid option image-feature="exclusive-lock,fast-diff": fast-diff needs object-map`},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := ParseSpec(backend.PoolSpec{Pool: "rbd"}, row.defaults, row.given)
			backendtest.Invalid(t, err, row.want)
		})
	}
}

func TestSettingsAreCheckedAsTheyWillBeUsed(t *testing.T) {
	for _, defaults := range []opts{
		nil,
		{OptSize: "10G", OptFSType: "xfs", OptMkfsOptions: "-m reflink=0", OptMountOptions: "--options=noatime,nouuid", OptOrder: "22"},
	} {
		if err := CheckDefaults(defaults); err != nil {
			t.Errorf("%v: %v", defaults, err)
		}
	}
	refused := opts{
		OptSize: "1", OptFSType: "zfs", OptMkfsOptions: "\x7f", OptMountOptions: "remount", OptOrder: "1", OptObjectSize: "1", OptFeatures: "striping",
	}
	for option, value := range refused {
		err := CheckDefaults(opts{option: value})
		if err == nil || !strings.Contains(err.Error(), option+"="+quoted(value)) {
			t.Errorf("%s=%q: got %v", option, value, err)
			continue
		}
		backendtest.OneInvalidLine(t, err)
	}
}

func TestMountOptions(t *testing.T) {
	for value, want := range map[string]string{
		"":                                "",
		"  ":                              "",
		"noatime":                         "noatime",
		" noatime ":                       "noatime",
		"noatime,nodiratime,discard":      "noatime,nodiratime,discard",
		"--options=noatime":               "noatime",
		"--options=":                      "",
		"--options noatime,discard":       "noatime,discard",
		"-o noatime":                      "noatime",
		"-onoatime":                       "noatime",
		"-o  noatime":                     "noatime",
		"compress=zstd:3,ssd":             "compress=zstd:3,ssd",
		"data=ordered,errors=remount-ro":  "data=ordered,errors=remount-ro", // remount only as the value of another
		strings.Repeat("a", 1024):         strings.Repeat("a", 1024),
		"nouuid,logbsize=256k,allocsize=": "nouuid,logbsize=256k,allocsize=",
	} {
		if got, err := parseMountOptions(OptMountOptions, value); err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", value, got, err, want)
		}
	}
}

// notOfOneMount are the flags of mount(2) that make it do something other than
// mounting the volume, by the names that github.com/moby/sys/mount knows.
var notOfOneMount = []string{
	"bind", "rbind", "remount", "move",
	"shared", "rshared", "private", "rprivate", "slave", "rslave", "unbindable", "runbindable",
}

func TestMountOptionsRefused(t *testing.T) {
	for _, o := range notOfOneMount {
		for _, value := range []string{o, "--options=" + o, "-o " + o, "noatime," + o, o + ",noatime"} {
			_, err := parseMountOptions(OptMountOptions, value)
			backendtest.Invalid(t, err, `invalid option mountOptions=`+quoted(value)+`: `+o+` is not an option of a filesystem`)
		}
	}
	const blanks = `: give mount options with commas and no spaces, for example noatime,discard`
	const ascii = `: allowed are printable ASCII characters`
	for value, why := range map[string]string{
		"noatime, discard":  blanks,
		"noatime discard":   blanks,
		"-o noatime -o ro":  blanks,
		"noatime\ndiscard":  blanks,
		"noatime\tdiscard":  blanks,
		"noatime\x00":       blanks,
		"noatime\vdiscard":  ascii,
		"noatime\x7f":       ascii,
		"noatime\u00a0,ro":  ascii,
		"subvol=größe":      ascii,
		"noatime,\xff\xfe,": ascii,
	} {
		_, err := parseMountOptions(OptMountOptions, value)
		backendtest.Invalid(t, err, `invalid option mountOptions=`+quoted(value)+why)
	}
	_, err := parseMountOptions(OptMountOptions, strings.Repeat("a", 1025))
	backendtest.Invalid(t, err, `invalid option mountOptions: it has 1025 bytes, at most 1024 are allowed`)
}

func TestMountOptionsReachOnlyTheirFilesystem(t *testing.T) {
	for _, row := range []struct {
		name     string
		defaults opts
		own      string
		fstype   string
		want     string
	}{
		{"ext4, nothing set", nil, "", "ext4", "noatime,errors=remount-ro"},
		{"xfs, nothing set", nil, "", "xfs", "noatime,nouuid"},
		{"btrfs, nothing set", nil, "", "btrfs", "noatime"},
		{"another one's volume", nil, "", "f2fs", ""},
		{"an older ext", nil, "", "ext3", "errors=remount-ro"},
		{"setting for ext4 on ext4", opts{OptMountOptions: "--options=data=journal"}, "", "ext4", "data=journal,errors=remount-ro"},
		{"setting for ext4 on xfs", opts{OptMountOptions: "data=journal"}, "", "xfs", "noatime,nouuid"},
		{"setting for ext4 on btrfs", opts{OptFSType: "ext4", OptMountOptions: "data=journal"}, "", "btrfs", "noatime"},
		{"setting for xfs on xfs", opts{OptFSType: "xfs", OptMountOptions: "nouuid"}, "", "xfs", "nouuid"},
		{"setting for xfs on ext4", opts{OptFSType: "xfs", OptMountOptions: "nouuid"}, "", "ext4", "noatime,errors=remount-ro"},
		{"the volume's own come first", opts{OptMountOptions: "data=journal"}, "discard", "ext4", "discard,errors=remount-ro"},
		{"the volume's own on another filesystem", opts{OptMountOptions: "data=journal"}, "discard", "xfs", "discard,nouuid"},
		{"no words", nil, ",", "xfs", "nouuid"},
		{"errors that would go on", nil, "errors=continue,discard", "ext4", "discard,errors=remount-ro"},
		{"errors that would end the node, in the setting", opts{OptMountOptions: "errors=panic"}, "", "ext4", "errors=remount-ro"},
		{"what is needed is said already", nil, "errors=remount-ro,discard", "ext4", "errors=remount-ro,discard"},
		{"said more than once", nil, "errors=remount-ro,errors=panic", "ext4", "errors=remount-ro"},
		{"xfs by itself", nil, "nouuid,discard", "xfs", "nouuid,discard"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := MountOptions(row.own, row.fstype, row.defaults); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// What Create leaves in Ceph is all that the node of the first mount knows.
func TestOptionsSurviveAsMetadata(t *testing.T) {
	o, err := ParseSpec(backend.PoolSpec{Pool: "rbd"}, nil, opts{
		OptFSType: "xfs", OptMkfsOptions: "-m reflink=0", OptMountOptions: "-o noatime", OptUID: "999", OptGID: "0", OptMode: "750",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := opts{"fstype": "xfs", "mkfsOptions": "-m reflink=0", "mountOptions": "noatime", "uid": "999", "gid": "0", "mode": "0750"}
	if got := o.Metadata().Encode(); !maps.Equal(got, want) {
		t.Errorf("metadata %v, want %v", got, want)
	}
	owner, err := o.Metadata().Owner()
	if err != nil || !reflect.DeepEqual(owner, o.Owner) {
		t.Errorf("read back: %+v, %v", owner, err)
	}
}

func TestAnExistingImageAgreesUnlessTheRequestSaysOtherwise(t *testing.T) {
	image, meta := backend.Image{Size: 10 << 30}, opts{KeyFSType: "ext4"}
	for _, row := range []struct {
		name  string
		given opts
		meta  opts
		want  string
	}{
		{"nothing asked", nil, meta, ""},
		{"the same in other words", opts{OptSize: "10240", OptFSType: "ext4"}, meta, ""},
		{"an image of somebody else", opts{OptFSType: "xfs"}, nil, ""},
		{"what can be changed later", opts{OptMountOptions: "discard", OptUID: "1"}, meta, ""},
		{"another size", opts{OptSize: "20G"}, meta,
			"already exists with size 10GiB, but 20G was asked for; remove that volume or leave the option out"},
		{"another filesystem", opts{OptFSType: "xfs"}, meta,
			"already exists with fstype ext4, but xfs was asked for; remove that volume or leave the option out"},
	} {
		t.Run(row.name, func(t *testing.T) {
			o, err := ParseSpec(backend.PoolSpec{Pool: "rbd"}, opts{OptSize: "1G"}, row.given)
			if err != nil {
				t.Fatal(err)
			}
			err = o.Match(image.Size, ParseMetadata(row.meta))
			if row.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, backend.ErrExists) || err.Error() != row.want {
				t.Errorf("got %v, want %s", err, row.want)
			}
		})
	}
}

func FuzzMountOptions(f *testing.F) {
	for _, value := range []string{
		"", "noatime", "--options=noatime", "--options noatime", "-o noatime,discard", "-obind", "-o-obind", "rbind", "noatime,remount",
		"noatime ,ro", "a\x00b", "größe", "a,,b", ",", "--options=--options=bind", "r", "errors=remount-ro",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := parseMountOptions("fuzz", value)
		if err != nil {
			backendtest.OneInvalidLine(t, err)
			return
		}
		checkMountOptions(t, got)
	})
}

func checkMountOptions(t *testing.T, value string) {
	t.Helper()
	if len(value) > 1024 {
		t.Errorf("accepted %d bytes", len(value))
	}
	for _, r := range value {
		if r <= ' ' || r > '~' {
			t.Errorf("accepted %q with %q", value, r)
		}
	}
	for o := range strings.SplitSeq(value, ",") {
		if slices.Contains(notOfOneMount, o) {
			t.Errorf("accepted %q with %s", value, o)
		}
	}
}

// FuzzOptions reads its inputs as name=value;name=value.
func FuzzOptions(f *testing.F) {
	for _, seed := range [][2]string{
		{"", ""},
		{"size=10G;fstype=xfs;mkfsOptions=-m reflink=0;mountOptions=noatime", ""},
		{"size=1024;fstype=ext4;mkfsOptions=-O mmp;mountOptions=--options=noatime;order=22", "size=512;order=22"},
		{"fstype=btrfs", "mkfsOptions=-O mmp;mountOptions=data=journal"},
		{"uid=0;gid=4294967294;mode=2770;pool=rbd", ""},
		{"object-size=4M;data-pool=ec;image-feature=layering,exclusive-lock", "object-size=8M"},
		{"order=22;object-size=4M", ""},
		{"image-feature=fast-diff", "fstype=xfs;size=1"},
		{"sise=1", "mountOptions=rbind"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, given, defaults string) {
		o, err := ParseSpec(backend.PoolSpec{Pool: "rbd"}, optsOf(defaults), optsOf(given))
		if err != nil {
			backendtest.OneInvalidLine(t, err)
			return
		}
		if o.Size == 0 || o.Size > maxSize || o.Size%mib != 0 || o.Size < minSize[o.FSType] {
			t.Errorf("accepted size %d of %s", o.Size, o.FSType)
		}
		if !slices.Contains([]string{"ext4", "xfs", "btrfs"}, o.FSType) {
			t.Errorf("accepted filesystem %q", o.FSType)
		}
		if o.ObjectSize != 0 && (bits.OnesCount64(o.ObjectSize) != 1 || o.ObjectSize < 4<<10 || o.ObjectSize > 32<<20) {
			t.Errorf("accepted object size %d", o.ObjectSize)
		}
		for _, feature := range o.Features {
			if !slices.Contains(allFeatures, feature) {
				t.Errorf("accepted feature %q", feature)
			}
		}
		if o.FSType != defaultFSType(optsOf(defaults)) && o.MkfsOptions != optsOf(given)[OptMkfsOptions] {
			t.Errorf("mkfs.%s would get %q of the settings", o.FSType, o.MkfsOptions)
		}
		checkMountOptions(t, o.MountOptions)
		if owner, err := o.Metadata().Owner(); err != nil || !reflect.DeepEqual(owner, o.Owner) {
			t.Errorf("owner %+v read back as %+v, %v", o.Owner, owner, err)
		}
		for key, value := range o.Metadata().Encode() {
			if strings.ContainsAny(value, "\x00\n") || len(value) > 1024 {
				t.Errorf("metadata %s=%q", key, value)
			}
		}
		if err := o.Match(o.Size, o.Metadata()); err != nil {
			t.Errorf("a volume does not agree with its own options: %v", err)
		}
	})
}

func optsOf(text string) opts {
	all := opts{}
	for pair := range strings.SplitSeq(text, ";") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			all[name] = value
		}
	}
	return all
}
