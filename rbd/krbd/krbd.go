package krbd

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

const sysfs = "/sys/bus/rbd"

// Cluster tells what the kernel's client needs to know; rbd.Pool does.
type Cluster interface {
	Kernel(ctx context.Context) (rbd.Kernel, error)
}

// Mapper maps the images of one pool.
type Mapper struct {
	Ceph      Cluster
	Pool      string
	Namespace string
	User      string
	FSID      string // of the cluster, as another may have a pool of the same name; "" = not known
	Sys       string // "" = /sys/bus/rbd

	adding singleflight.Group // by image id: a map that outlived its request is joined, not doubled
}

var _ driver.Mapper = (*Mapper)(nil)

// Available tells whether the kernel has rbd, loading the module if it can.
func Available() error {
	if _, err := os.Stat(sysfs); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", "rbd", "single_major=Y").CombinedOutput()
	if err != nil {
		return fmt.Errorf("the kernel has no rbd, and modprobe rbd: %w: %s", err, strings.Join(strings.Fields(string(out)), " "))
	}
	_, err = os.Stat(sysfs)
	return err
}

func (m *Mapper) sys(path ...string) string {
	root := m.Sys
	if root == "" {
		root = sysfs
	}
	return filepath.Join(append([]string{root}, path...)...)
}

// Map writes to sysfs; see driver.Mapper.
func (m *Mapper) Map(ctx context.Context, image driver.Image, mode driver.OpenMode) (driver.Mapping, error) {
	if found, ok, err := m.find(ctx, image.ID); err != nil || ok {
		return found, err
	}
	if err := m.checkFeatures(image.Features); err != nil {
		return driver.Mapping{}, err
	}
	if mode == driver.ReadWrite && !slices.Contains(image.Features, driver.FeatureLock) {
		// With it the kernel waits for the newest OSD map, and so for the fence
		// of a dead holder, before it lets anything through.
		return driver.Mapping{}, fmt.Errorf("%w: the image lacks the feature exclusive-lock; switch it on while nobody uses it: "+
			"rbd feature enable %s/%s exclusive-lock", driver.ErrInvalid, m.Pool, image.Name)
	}
	k, err := m.Ceph.Kernel(ctx)
	if err != nil {
		return driver.Mapping{}, err
	}
	spec, err := addString(k, m.Pool, m.Namespace, image.Name, mode, kernelRelease())
	if err != nil {
		return driver.Mapping{}, err
	}
	// The kernel waits for the monitors up to 60 s, and for the exclusive lock.
	if err := driver.Within(ctx, "map in the kernel", func() error {
		_, err, _ := m.adding.Do(image.ID, func() (any, error) { return nil, m.add(k, spec) })
		return err
	}); err != nil {
		return driver.Mapping{}, explain(err)
	}
	found, ok, err := m.find(ctx, image.ID)
	if err == nil && !ok {
		err = fmt.Errorf("%w: the image called %s is not the one that was asked for", driver.ErrLost, image.Name)
	}
	return found, err
}

// ourOptions begin the options of every mapping of ours. The queue depth is the
// kernel's own default: nobody writes it by hand, so that it tells our mappings
// from an admin's.
func ourOptions(user string) string {
	user = strings.TrimPrefix(user, "client.")
	return "name=" + user + ",key=client." + user + ",noshare,queue_depth=128"
}

// addString is the line that maps an image (drivers/block/rbd.c,
// rbd_add_parse_args). The kernel splits it at white space; names that could
// be volumes have none.
func addString(k rbd.Kernel, pool, namespace, image string, mode driver.OpenMode, kernel [2]int) (string, error) {
	options := []string{ourOptions(k.User)}
	if kernel[0] > 4 || kernel[0] == 4 && kernel[1] >= 17 {
		options = append(options, "lock_timeout=60") // else it would wait for ever
	}
	mons := k.V1
	// msgr2 came to the kernel with 5.11; before, ms_mode is an unknown option.
	if len(k.V2) > 0 && (kernel[0] > 5 || kernel[0] == 5 && kernel[1] >= 11) {
		mons = k.V2
		options = append(options, "ms_mode=prefer-crc")
	}
	if len(mons) == 0 {
		return "", errors.New("no monitor has an address for this kernel: before Linux 5.11 it needs the v1 protocol (port 6789)")
	}
	if mode == driver.ReadOnly {
		options = append(options, "ro")
	}
	if namespace != "" {
		options = append(options, "_pool_ns="+namespace)
	}
	if strings.ContainsAny(pool+namespace+image, " \t\n,") {
		return "", fmt.Errorf("%w: the kernel cannot map names with blanks or commas (%s/%s/%s)", driver.ErrInvalid, pool, namespace, image)
	}
	return fmt.Sprintf("%s %s %s %s -", strings.Join(mons, ","), strings.Join(options, ","), pool, image), nil
}

// add puts the key into the keyring of this thread and writes the line. The
// kernel looks for the key in the keyrings of the caller, and Go's threads have
// one each.
func (m *Mapper) add(k rbd.Kernel, spec string) error {
	key, err := base64.StdEncoding.DecodeString(k.Key)
	if err != nil {
		return errors.New("the key in the keyring is not base64")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := unix.AddKey("ceph", "client."+k.User, key, unix.KEY_SPEC_PROCESS_KEYRING); err != nil {
		return fmt.Errorf("add the key to the kernel's keyring: %w", err)
	}
	return m.write("add", spec)
}

// write uses the files of the single major number where the module has it.
func (m *Mapper) write(what, text string) error {
	path := m.sys(what + "_single_major")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		path = m.sys(what)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	_, err = unix.Write(int(file.Fd()), []byte(text)) // in one write, or not at all
	return err
}

// explain says what the kernel's error numbers mean here.
func explain(err error) error {
	hint := "see the kernel's log"
	var file *fs.PathError
	switch {
	case errors.As(err, &file): // of the file in sysfs, not of the image
		return fmt.Errorf("%w: is /sys of the host there, and writable?", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: the kernel finds no such pool or image", driver.ErrNotFound)
	case errors.Is(err, unix.ENXIO):
		hint = "the image has features that this kernel does not know; see the kernel's log"
	case errors.Is(err, unix.EPERM):
		hint = "the kernel finds no key, or the plugin lacks CAP_SYS_ADMIN on the host"
	case errors.Is(err, unix.EACCES):
		hint = "the key lacks caps; the README lists them"
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another client has the image's lock: %w", driver.ErrInUse, err)
	case errors.Is(err, unix.ETIMEDOUT):
		return fmt.Errorf("%w: the kernel could not reach the monitors: %w", driver.ErrUnavailable, err)
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// featureBits are those of librbd that are about the format of the image.
var featureBits = map[string]uint64{
	"layering": 1, "striping": 2, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16,
	"deep-flatten": 32, "journaling": 64, "data-pool": 128, "operations": 256, "migrating": 512,
}

// checkFeatures names what the running kernel cannot map; the kernel itself
// tells a mask, and only its log.
func (m *Mapper) checkFeatures(features []string) error {
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
	unknown := slices.DeleteFunc(slices.Clone(features), func(f string) bool { return featureBits[f]&mask != 0 })
	if len(unknown) > 0 {
		return fmt.Errorf("%w: this kernel cannot map images with %s; take a newer one, or rbd feature disable",
			driver.ErrInvalid, strings.Join(unknown, ", "))
	}
	return nil
}

func kernelRelease() (release [2]int) {
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &release[0], &release[1])
	}
	return release
}

// Unmap removes the device; see driver.Mapper.
func (m *Mapper) Unmap(ctx context.Context, id string) error { return m.remove(ctx, id, "") }

// Drop removes the device whoever has it open; see driver.Mapper. The kernel
// still waits for requests under way: those of a fenced client end at once.
func (m *Mapper) Drop(ctx context.Context, id string) error { return m.remove(ctx, id, " force") }

func (m *Mapper) remove(ctx context.Context, id, force string) error {
	found, ok, err := m.find(ctx, id)
	if err != nil || !ok {
		return err
	}
	number := strings.TrimPrefix(filepath.Base(found.Device), "rbd")
	err = driver.Within(ctx, "unmap "+found.Device, func() error { return m.write("remove", number+force) })
	switch {
	case errors.Is(err, unix.ENOENT): // gone since
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is %w: a container or another process has it open", found.Device, driver.ErrBusy)
	}
	return err
}

// Mappings lists the devices of our pool; see driver.Mapper.
func (m *Mapper) Mappings(context.Context) ([]driver.Mapping, error) {
	dirs, err := os.ReadDir(m.sys("devices"))
	if err != nil {
		return nil, err
	}
	var all []driver.Mapping
	for _, dir := range dirs {
		attr := func(name string) string {
			text, _ := os.ReadFile(m.sys("devices", dir.Name(), name)) // gone since: empty
			return strings.TrimSuffix(string(text), "\n")
		}
		if attr("pool") != m.Pool || attr("pool_ns") != m.Namespace || attr("current_snap") != "-" ||
			m.FSID != "" && attr("cluster_fsid") != m.FSID || !m.ours(attr("config_info")) {
			continue
		}
		all = append(all, driver.Mapping{
			Name: attr("name"), ID: attr("image_id"), Device: "/dev/rbd" + dir.Name(), Addr: attr("client_addr"), Alive: true,
		})
	}
	return all, nil
}

// ours tells a device that this plugin mapped, from the line that was written
// for it (monitors, options, pool, image, snapshot): what an admin has mapped is
// none of our business.
func (m *Mapper) ours(configInfo string) bool {
	fields := strings.Fields(configInfo)
	return len(fields) == 5 && strings.HasPrefix(fields[1]+",", ourOptions(m.User)+",")
}

func (m *Mapper) find(ctx context.Context, id string) (driver.Mapping, bool, error) {
	all, err := m.Mappings(ctx)
	for _, found := range all {
		if found.ID == id {
			return found, true, nil
		}
	}
	return driver.Mapping{}, false, err
}
