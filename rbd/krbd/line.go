package krbd

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// MSModes are the values of the kernel's option ms_mode (net/ceph/ceph_common.c):
// how to speak with Ceph. All but legacy are protocol v2, since Linux 5.11.
var MSModes = []string{"legacy", "crc", "secure", "prefer-crc", "prefer-secure"}

// line is what maps an image (drivers/block/rbd.c, rbd_add_parse_args):
// monitors, options, pool, image, snapshot. The kernel splits it at white space.
//
// The options begin as no admin writes them by hand, with the queue depth that
// is the default anyway: so our mappings are told from others. Devices that
// running nodes have mapped bear this beginning: it is a format. Without noshare
// all volumes of a node would be one client of Ceph, and one fence for all.
func (m *Mapper) line(k rbd.Kernel, image backend.Image, mode backend.OpenMode, kernel [2]int) (string, error) {
	if strings.ContainsAny(m.Pool+m.Namespace+image.Name+image.Snap, " \t\n,") {
		return "", fmt.Errorf("%w: the kernel cannot map names with blanks or commas (%s@%s)", backend.ErrInvalid, m.spec(image.Name), image.Snap)
	}
	options := []string{"name=" + k.User + ",key=client." + k.User + ",noshare,queue_depth=128"}
	if kernel[0] > 4 || kernel[0] == 4 && kernel[1] >= 17 {
		options = append(options, "lock_timeout=60") // else it would wait for ever
	}
	mons, msMode, err := m.speak(k, kernel)
	if err != nil {
		return "", err
	}
	if msMode != "" {
		options = append(options, "ms_mode="+msMode)
	}
	if mode == backend.ReadOnly {
		options = append(options, "ro")
	}
	if m.Namespace != "" {
		options = append(options, "_pool_ns="+m.Namespace)
	}
	snap := "-"
	if image.Snap != "" {
		snap = image.Snap
	}
	return strings.Join([]string{strings.Join(mons, ","), strings.Join(options, ","), m.Pool, image.Name, snap}, " "), nil
}

// speak chooses the protocol, and the monitors' addresses for it. "" = v1,
// without an option that a kernel might not know.
func (m *Mapper) speak(k rbd.Kernel, kernel [2]int) (mons []string, msMode string, err error) {
	knowsV2 := kernel[0] > 5 || kernel[0] == 5 && kernel[1] >= 11
	switch {
	case m.MSMode == "legacy":
		mons = k.V1
	case m.MSMode != "":
		mons, msMode = k.V2, m.MSMode
	case knowsV2 && len(k.V2) > 0 || len(k.V1) == 0: // some distributions' older kernels have it
		mons, msMode = k.V2, "prefer-crc"
	default:
		mons = k.V1
	}
	if len(mons) == 0 {
		return nil, "", fmt.Errorf("%w: no monitor has an address for this protocol (RBD_MS_MODE=%s; v1: %s; v2: %s)", backend.ErrInvalid,
			m.MSMode, or(strings.Join(k.V1, ","), "none"), or(strings.Join(k.V2, ","), "none"))
	}
	return mons, msMode, nil
}

// withKey calls with the key in the keyring of this thread, where the kernel
// looks for it (net/ceph/ceph_common.c, get_secret): in the line it would show
// in sysfs for as long as the device is there.
func withKey(k rbd.Kernel, call func() error) error {
	key, err := base64.StdEncoding.DecodeString(k.Key)
	if err != nil {
		return errors.New("the key in the keyring is not base64")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("ceph", "client."+k.User, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return addKeyError(k, err)
	}
	defer func() { _, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0) }()
	return call()
}

// ErrKey tells that this kernel cannot use keys of a type.
var ErrKey = errors.New("this kernel does not take the key")

// Takes tries whether the kernel can use a user's key: an error that is an ErrKey if not.
// Which version can is no answer, as distributions take patches back to older ones.
func Takes(user, key string) error {
	return withKey(rbd.Kernel{User: strings.TrimPrefix(user, "client."), Key: key}, func() error { return nil })
}

// notSupported is ENOTSUPP, which Linux keeps for itself, and yet lets out: it is how
// set_secret refuses a type of key (net/ceph/crypto.c).
const notSupported = unix.Errno(524)

func addKeyError(k rbd.Kernel, err error) error {
	if !errors.Is(err, notSupported) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("add the key to the kernel's keyring: %w", err)
	}
	kind, typeErr := rbd.KeyType(k.Key)
	if typeErr != nil || kind == rbd.KeyAES {
		return fmt.Errorf("add the key to the kernel's keyring: %w; is it whole?", err)
	}
	release := kernelRelease()
	return fmt.Errorf("%w of client.%s: it is of type %s, which Linux has from 7.0 on, and this is %d.%d (%w); set RBD_MAPPER=fuse or auto and enable the plugin anew, "+
		"take a newer kernel, or %s", ErrKey, k.User, kind, release[0], release[1], err, rbd.OldKey("client."+k.User))
}

// feature is one of librbd's that are about the format of the image.
type feature struct {
	name  string
	bit   uint64
	since string // the kernel that has it; "" = none
	fixed bool   // for the life of the image
}

// features as in Ceph's doc/rbd/rbd-config-ref.rst.
var features = []feature{
	{"layering", 1, "3.10", true}, {"striping", 2, "4.17", true}, {"exclusive-lock", 4, "4.9", false}, {"object-map", 8, "5.3", false},
	{"fast-diff", 16, "5.3", false}, {"deep-flatten", 32, "5.1", false}, {"journaling", 64, "", false}, {"data-pool", 128, "4.11", true},
	{"operations", 256, "4.16", true}, {"migrating", 512, "", true},
}

// checkFeatures names what the running kernel cannot map, and the cure; the
// kernel itself tells a mask, and only its log.
func (m *Mapper) checkFeatures(image string, has []string) error {
	text, err := os.ReadFile(m.sys("supported_features"))
	if errors.Is(err, fs.ErrNotExist) { // before 4.11: the kernel will say
		return nil
	}
	if err != nil {
		return err
	}
	mask, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(string(text)), "0x"), 16, 64)
	if err != nil {
		return fmt.Errorf("supported_features: %w", err)
	}
	var unknown, off, cures []string
	for _, name := range has {
		i := slices.IndexFunc(features, func(f feature) bool { return f.name == name })
		switch {
		case i >= 0 && features[i].bit&mask != 0:
			continue
		case i >= 0 && !features[i].fixed:
			off = append(off, name)
		case name == "migrating":
			cures = append(cures, "end the migration (rbd migration commit "+m.spec(image)+")")
		}
		unknown = append(unknown, name)
		if i >= 0 && features[i].since != "" {
			cures = append(cures, "take Linux "+features[i].since+" or newer for "+name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	if len(off) > 0 {
		// fast-diff stands on object-map, and that on exclusive-lock: the last first.
		slices.SortFunc(off, func(a, b string) int { return indexOf(b) - indexOf(a) })
		cures = append(cures, "switch it off while nobody uses it: rbd feature disable "+m.spec(image)+" "+strings.Join(off, " "))
	}
	cures = append(cures, "or set RBD_MAPPER=fuse")
	return fmt.Errorf("%w: this kernel cannot map images with %s; %s", backend.ErrInvalid, strings.Join(unknown, ", "), strings.Join(cures, ", "))
}

// Supports looks at what the kernel can; see backend.Mapper.
func (m *Mapper) Supports(features []string) error { return m.checkFeatures("IMAGE", features) }

func indexOf(name string) int {
	return slices.IndexFunc(features, func(f feature) bool { return f.name == name })
}

func kernelRelease() (release [2]int) {
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &release[0], &release[1])
	}
	return release
}
