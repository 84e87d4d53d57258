package krbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// device is one of the kernel's.
type device struct {
	backend.Mapping
	number string // of /dev/rbdN
	plain  bool   // Device is its plain text
}

// Mappings lists the devices of our pool; see backend.Mapper. The cluster's id is
// asked for when there is one that may be ours.
func (m *Mapper) Mappings(ctx context.Context) ([]backend.Mapping, error) {
	devices, err := m.devices(ctx)
	var all []backend.Mapping
	for _, d := range devices {
		all = append(all, d.Mapping)
	}
	return all, err
}

func (m *Mapper) devices(ctx context.Context) ([]device, error) {
	dirs, err := os.ReadDir(m.sys("devices"))
	if err != nil {
		return nil, err
	}
	var all []device
	plains, err := m.plains() // what is encrypted must not pass for a plain device
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		attrs, there, err := m.attributes(dir.Name())
		if err != nil {
			return nil, err
		}
		attr := func(name string) string { return attrs[name] }
		line := attr("config_info")
		if !there || attr("pool") != m.Pool || attr("pool_ns") != m.Namespace || !ours(line) {
			continue
		}
		fsid, err := m.Ceph.FSID(ctx)
		if err != nil {
			return nil, fmt.Errorf("whose is /dev/rbd%s: %w", dir.Name(), err)
		}
		if attr("cluster_fsid") != fsid {
			continue
		}
		found := device{number: dir.Name(), Mapping: backend.Mapping{
			Name: attr("name"), ID: attr("image_id"), Device: "/dev/rbd" + dir.Name(), Addr: attr("client_addr"), Alive: true,
			Mode: backend.ReadWrite,
		}}
		if plain := plains[found.number]; plain != "" {
			found.Device, found.plain = plain, true
		}
		if snap := attr("current_snap"); snap != "-" {
			found.Snap = snap
		}
		if found.Snap != "" || readOnly.MatchString(line) {
			found.Mode = backend.ReadOnly
		}
		all = append(all, found)
	}
	return all, nil
}

// attributes reads those of a device; there is false if the device has gone since.
func (m *Mapper) attributes(number string) (attrs map[string]string, there bool, err error) {
	attrs = map[string]string{}
	for _, name := range []string{"pool", "pool_ns", "config_info", "cluster_fsid", "name", "image_id", "client_addr", "current_snap"} {
		text, err := os.ReadFile(m.sys("devices", number, name))
		switch {
		case gone(err) && name == "pool_ns": // there is none before Linux 4.19
		case gone(err):
			return nil, false, nil
		case err != nil:
			return nil, false, fmt.Errorf("look at /dev/rbd%s: %w", number, err)
		}
		attrs[name] = strings.TrimSuffix(string(text), "\n")
	}
	return attrs, true, nil
}

// gone tells that what sysfs was asked for is there no longer. Anything else, such as
// too many open files, says nothing: what is mapped must not pass for free.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// ours tells a device that this plugin mapped, from the line that was written
// for it (monitors, options, pool, image, snapshot): what an admin has mapped is
// none of our business. It may be under the key of earlier settings.
func ours(configInfo string) bool {
	fields := strings.Fields(configInfo)
	return len(fields) == 5 && ourOptions.MatchString(fields[1]+",")
}

var ourOptions = regexp.MustCompile(`^name=([^,]+),key=client\.([^,]+),noshare,queue_depth=128,`)

// readOnly tells the line of a read-only mapping.
var readOnly = regexp.MustCompile(`^\S+ \S+,ro(,| )`)

// Size is what the kernel says: it hears of a resize by itself; see backend.Mapper.
// It is asked for each second and each device, so it reads no more than it must.
func (m *Mapper) Size(ctx context.Context, mapping backend.Mapping) (uint64, error) {
	name := filepath.Base(mapping.Device)
	if !strings.HasPrefix(name, "dm-") {
		return sizeOf(m.block(), name)
	}
	number, err := m.below(name)
	if err == nil && number == "" {
		err = fmt.Errorf("%s: %w", mapping.Device, fs.ErrNotExist)
	}
	if err != nil {
		return 0, err
	}
	size, err := sizeOf(m.block(), "rbd"+number)
	if err != nil {
		return 0, err
	}
	if err := m.growPlain(ctx, mapping.Addr, number, size); err != nil {
		return 0, err
	}
	return sizeOf(m.block(), name)
}

// sizeOf is the size of a block device in bytes.
func sizeOf(block, name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(block, name, "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return sectors * 512, err
}

// block is where sysfs has the block devices.
func (m *Mapper) block() string { return or(m.Block, "/sys/block") }

func (m *Mapper) find(ctx context.Context, key string) (device, bool, error) {
	all, err := m.devices(ctx)
	for _, found := range all {
		if found.Key() == key {
			return found, true, nil
		}
	}
	return device{}, false, err
}
