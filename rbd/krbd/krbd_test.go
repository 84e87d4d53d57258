package krbd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

const fsid = "bb4e41bc-95df-4e57-9d4d-36c3516b51ca"

// tree is /sys/bus/rbd as a kernel shows it: every value ends in a line feed.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T, files ...string) tree {
	t.Helper()
	tr := tree{t, t.TempDir()}
	if err := os.Mkdir(filepath.Join(tr.dir, "devices"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		tr.file(name, "")
	}
	return tr
}

func (tr tree) file(name, text string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(tr.dir, name)), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tr.dir, name), []byte(text), 0o600); err != nil {
		tr.t.Fatal(err)
	}
}

// device adds a device as Linux 6.1 shows one of image db1; attrs change it.
func (tr tree) device(id string, attrs map[string]string) {
	tr.t.Helper()
	all := map[string]string{
		"pool": "rbd", "pool_id": "1", "pool_ns": "", "name": "db1", "image_id": "5e4a6b8b4567", "current_snap": "-",
		"snap_id": "18446744073709551614", "size": "536870912", "major": "252", "minor": "0", "features": "0x000000000000003d",
		"client_addr": "192.168.1.5:0/1913726304", "client_id": "client4157", "cluster_fsid": fsid,
		"config_info": "192.168.1.1:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60 rbd db1 -", "parent": "(no parent image)",
	}
	for name, value := range attrs {
		all[name] = value
	}
	dir := filepath.Join("devices", id)
	if err := os.Mkdir(filepath.Join(tr.dir, dir), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	for name, value := range all {
		if value != "absent" {
			tr.file(filepath.Join(dir, name), value+"\n")
		}
	}
}

func (tr tree) want(name, text string) {
	tr.t.Helper()
	got, err := os.ReadFile(filepath.Join(tr.dir, name))
	if err != nil || string(got) != text {
		tr.t.Errorf("%s has %q (%v), want %q", name, got, err, text)
	}
}

func (tr tree) mapper() *Mapper {
	return &Mapper{Pool: "rbd", Sys: tr.dir, Kmsg: filepath.Join(tr.dir, "kmsg"), Ceph: noCluster{tr.t}}
}

// noCluster fails the test when it is asked.
type noCluster struct{ t *testing.T }

func (c noCluster) Kernel(context.Context) (rbd.Kernel, error) {
	c.t.Error("Ceph was asked")
	return rbd.Kernel{}, backend.ErrUnavailable
}

func (noCluster) FSID(context.Context) (string, error) { return fsid, nil }

type cluster func() (rbd.Kernel, error)

func (c cluster) Kernel(context.Context) (rbd.Kernel, error) { return c() }

func (c cluster) FSID(context.Context) (string, error) { return fsid, nil }

// nameless is a cluster whose id is not to be had.
type nameless struct{ noCluster }

func (nameless) FSID(context.Context) (string, error) { return "", backend.ErrUnavailable }

func TestMappingsAreThoseOfOurPoolAndNamespace(t *testing.T) {
	tr := newTree(t)
	tr.device("0", nil)
	tr.device("1", map[string]string{"pool": "ssd", "image_id": "1"})
	tr.device("2", map[string]string{"pool_ns": "team", "image_id": "2"})
	tr.device("3", map[string]string{"current_snap": "monday", "snap_id": "4", "image_id": "3"})
	tr.device("10", map[string]string{"name": "db2", "image_id": "10", "client_addr": "[fd00::5]:0/7"})
	tr.device("11", map[string]string{"pool_ns": "absent", "name": "old", "image_id": "11"}) // before 4.19 there are no namespaces
	tr.device("12", map[string]string{"pool": "rbd2", "image_id": "12"})
	tr.device("14", map[string]string{"image_id": "14", "cluster_fsid": "00000000-95df-4e57-9d4d-36c3516b51ca"})
	tr.device("18", map[string]string{ // of ours, before the user was set anew
		"name": "db3", "image_id": "18", "config_info": "192.168.1.1:6789 name=old,key=client.old,noshare,queue_depth=128,ms_mode=crc rbd db3 -",
	})
	tr.device("19", map[string]string{ // a shared volume
		"name": "look", "image_id": "19", "config_info": "192.168.1.1:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ro rbd look -",
	})
	tr.device("20", map[string]string{"name": "secret", "image_id": "20"}) // encrypted: its plain text is another device
	tr.file("block/rbd20/holders/dm-3", "")
	tr.file("block/rbd20/size", "1000\n")
	tr.file("block/dm-3/dm/name", "docker-volume-rbd20\n")
	tr.file("block/rbd18/holders/dm-4", "")
	tr.file("block/dm-4/dm/name", "an-admins\n")
	for id, options := range map[string]string{ // what an admin maps is not ours
		"15": "name=admin,key=client.admin", "16": "name=docker,key=client.docker,noshare", "17": "name=docker,key=client.docker,ro",
	} {
		tr.device(id, map[string]string{"image_id": id, "config_info": "192.168.1.1:6789 " + options + " rbd db1 -"})
	}
	if err := os.Mkdir(filepath.Join(tr.dir, "devices", "13"), 0o755); err != nil { // just going away
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, pool, namespace string
		want                  []backend.Mapping
	}{
		{"no namespace", "rbd", "", []backend.Mapping{
			{Name: "db1", ID: "5e4a6b8b4567", Device: "/dev/rbd0", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
			{Name: "db2", ID: "10", Device: "/dev/rbd10", Addr: "[fd00::5]:0/7", Alive: true, Mode: backend.ReadWrite},
			{Name: "old", ID: "11", Device: "/dev/rbd11", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
			{Name: "db3", ID: "18", Device: "/dev/rbd18", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
			{Name: "look", ID: "19", Device: "/dev/rbd19", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadOnly},
			{Name: "secret", ID: "20", Device: "/dev/dm-3", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
			{Name: "db1", ID: "3", Snap: "monday", Device: "/dev/rbd3", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadOnly},
		}},
		{"namespace", "rbd", "team", []backend.Mapping{
			{Name: "db1", ID: "2", Device: "/dev/rbd2", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
		}},
		{"another pool", "ssd", "", []backend.Mapping{
			{Name: "db1", ID: "1", Device: "/dev/rbd1", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite},
		}},
		{"a pool with nothing mapped", "none", "", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := &Mapper{Ceph: noCluster{t}, Pool: row.pool, Namespace: row.namespace, Sys: tr.dir, Block: filepath.Join(tr.dir, "block")}
			got, err := m.Mappings(t.Context())
			if err != nil || !slices.Equal(got, row.want) {
				t.Errorf("\n got %+v (%v)\nwant %+v", got, err, row.want)
			}
		})
	}
}

// Whose a device is, is never guessed; where there is none, nobody asks.
func TestADeviceOfAClusterThatIsNotKnownIsNobodys(t *testing.T) {
	tr := newTree(t, "remove")
	m := tr.mapper()
	m.Ceph = nameless{noCluster{t}}
	if got, err := m.Mappings(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("no device: %v, %v", got, err)
	}
	tr.device("3", nil)
	got, err := m.Mappings(t.Context())
	if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "whose is /dev/rbd3") {
		t.Errorf("%v, %v", got, err)
	}
	if err := m.Unmap(t.Context(), "5e4a6b8b4567"); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("unmap: %v", err)
	}
	tr.want("remove", "")
}

func TestMappingsWithoutTheKernelsClientAreAnError(t *testing.T) {
	m := &Mapper{Pool: "rbd", Sys: filepath.Join(t.TempDir(), "none")}
	if got, err := m.Mappings(t.Context()); err == nil {
		t.Errorf("no rbd in the kernel, yet %v", got)
	}
	if err := m.Unmap(t.Context(), "5e4a6b8b4567"); err == nil {
		t.Error("unmapped, without knowing whether it is mapped")
	}
}

func TestFeaturesTheKernelCannotMapAreNamed(t *testing.T) {
	const linux61, linux415 = "0x1bf\n", "0xc5\n"
	const off = "switch it off while nobody uses it: rbd feature disable rbd/team/db1 "
	for _, row := range []struct {
		name, supported string
		features        []string
		want, cure      string
	}{
		{"all of ours", linux61, []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"}, "", ""},
		{"data pool", linux61, []string{"layering", "data-pool", "operations", "striping"}, "", ""},
		{"none", linux61, nil, "", ""},
		{"journaling", linux61, []string{"layering", "exclusive-lock", "journaling"}, "journaling", off + "journaling, "},
		{"an image under migration", linux61, []string{"layering", "migrating"}, "migrating",
			"end the migration (rbd migration commit rbd/team/db1), "},
		{"one that we do not know either", linux61, []string{"layering", "dirty-cache"}, "dirty-cache", ""},
		{"older kernel", linux415, []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"},
			"object-map, fast-diff, deep-flatten", "take Linux 5.3 or newer for object-map, take Linux 5.3 or newer for fast-diff, " +
				"take Linux 5.1 or newer for deep-flatten, " + off + "deep-flatten fast-diff object-map, "},
		{"what cannot be switched off", "0x5\n", []string{"layering", "striping"}, "striping", "take Linux 4.17 or newer for striping, "},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := newTree(t)
			tr.file("supported_features", row.supported)
			m := tr.mapper()
			m.Namespace = "team"
			err := m.checkFeatures("db1", row.features)
			if row.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			want := "invalid: this kernel cannot map images with " + row.want + "; " + row.cure + "or set RBD_MAPPER=fuse"
			if !errors.Is(err, backend.ErrInvalid) || err.Error() != want {
				t.Errorf("\n got %v\nwant %s", err, want)
			}
		})
	}
	t.Run("a kernel that does not say", func(t *testing.T) {
		if err := newTree(t).mapper().checkFeatures("db1", []string{"journaling"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a kernel that says something else", func(t *testing.T) {
		tr := newTree(t)
		tr.file("supported_features", "all\n")
		if err := tr.mapper().checkFeatures("db1", []string{"layering"}); err == nil {
			t.Error("understood")
		}
	})
}

const secret = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="

var (
	linux510 = [2]int{5, 10}
	linux61  = [2]int{6, 1}
	both     = rbd.Kernel{
		V1: []string{"10.0.0.1:6789", "10.0.0.2:6789"}, V2: []string{"10.0.0.1:3300", "10.0.0.2:3300"}, Key: secret, User: "docker",
	}
)

func TestTheLineThatMapsAnImage(t *testing.T) {
	v1, v2 := both, both
	v1.V2, v2.V1 = nil, nil
	for _, row := range []struct {
		name      string
		kernel    rbd.Kernel
		namespace string
		mode      backend.OpenMode
		release   [2]int
		set, snap string
		want      string
	}{
		{"5.10 knows only v1", both, "", backend.ReadWrite, linux510, "", "",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60 rbd db1 -"},
		{"5.11 knows v2", both, "", backend.ReadWrite, [2]int{5, 11}, "", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc rbd db1 -"},
		{"6.1", both, "", backend.ReadWrite, linux61, "", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc rbd db1 -"},
		{"6.1, monitors with v1 only", v1, "", backend.ReadWrite, linux61, "", "",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60 rbd db1 -"},
		{"6.1, monitors with v2 only", v2, "", backend.ReadWrite, linux61, "", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc rbd db1 -"},
		{"4.19 with a namespace", both, "team", backend.ReadWrite, [2]int{4, 19}, "", "",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,_pool_ns=team rbd db1 -"},
		{"read-only", both, "", backend.ReadOnly, linux510, "", "",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ro rbd db1 -"},
		{"all at once", both, "team", backend.ReadOnly, linux61, "", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc,ro,_pool_ns=team rbd db1 -"},
		{"IPv6", rbd.Kernel{V2: []string{"[fd00::1]:3300"}, Key: secret, User: "docker"}, "", backend.ReadWrite, linux61, "", "",
			"[fd00::1]:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc rbd db1 -"},
		{"set to secure", both, "", backend.ReadWrite, linux61, "secure", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=secure rbd db1 -"},
		{"set to legacy", both, "", backend.ReadWrite, linux61, "legacy", "",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60 rbd db1 -"},
		{"v2 only, and a kernel that may know it: it will say", v2, "", backend.ReadWrite, [2]int{4, 18}, "", "",
			"10.0.0.1:3300,10.0.0.2:3300 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ms_mode=prefer-crc rbd db1 -"},
		{"a snapshot", both, "", backend.ReadOnly, linux510, "", "monday",
			"10.0.0.1:6789,10.0.0.2:6789 name=docker,key=client.docker,noshare,queue_depth=128,lock_timeout=60,ro rbd db1 monday"},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := Mapper{Pool: "rbd", Namespace: row.namespace, MSMode: row.set}
			got, err := m.line(row.kernel, backend.Image{Name: "db1", Snap: row.snap}, row.mode, row.release)
			if err != nil || got != row.want {
				t.Errorf("\n got %s (%v)\nwant %s", got, err, row.want)
			}
			// The kernel shows the line in config_info.
			if strings.Contains(got, secret) || strings.Contains(got, "secret") {
				t.Errorf("the key is in the line: %s", got)
			}
			// Without exclusive: it would refuse resizing and snapshots.
			if strings.Contains(got, "exclusive") || strings.Contains(got, "lock_on_read") {
				t.Errorf("the line asks for the lock: %s", got)
			}
		})
	}
}

func TestWhatTheKernelCannotMap(t *testing.T) {
	v1, v2 := both, both
	v2.V1, v1.V2 = nil, nil
	for _, row := range []struct {
		set    string
		kernel rbd.Kernel
		says   string
	}{
		{"legacy", v2, "v1: none"}, {"secure", v1, "v2: none"}, {"", rbd.Kernel{User: "docker"}, "v1: none; v2: none"},
	} {
		m := Mapper{Pool: "rbd", MSMode: row.set}
		line, err := m.line(row.kernel, backend.Image{Name: "db1"}, backend.ReadWrite, linux61)
		if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%q: %s, %v", row.set, line, err)
		}
	}
	for _, names := range [][4]string{
		{"r bd", "", "db1"}, {"rbd", "te am", "db1"}, {"rbd", "", "db 1"}, {"rbd", "", "db1\n"}, {"rbd", "team,ro", "db1"}, {"rbd\t", "", "db1"},
		{"rbd", "", "db1", "mon day"},
	} {
		m := Mapper{Pool: names[0], Namespace: names[1]}
		line, err := m.line(both, backend.Image{Name: names[2], Snap: names[3]}, backend.ReadWrite, linux61)
		if !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %s, %v", names, line, err)
		}
	}
}

func TestTheKernelTellsItsRelease(t *testing.T) {
	if got := kernelRelease(); got[0] < 3 {
		t.Errorf("Linux %d.%d", got[0], got[1])
	}
}

func TestTheKernelsErrorNumbersAreExplained(t *testing.T) {
	kinds := []error{backend.ErrNotFound, backend.ErrInUse, backend.ErrUnavailable, backend.ErrInvalid, backend.ErrBusy, backend.ErrConflict, backend.ErrExists}
	for _, row := range []struct {
		err  error
		kind error // nil = none of the driver's
		says string
	}{
		{unix.ENOENT, backend.ErrNotFound, "no such pool, namespace, image or snapshot"},
		{unix.ENXIO, backend.ErrInvalid, "features"},
		{unix.EPERM, nil, "CAP_SYS_ADMIN"},
		{unix.EACCES, nil, "caps"},
		{unix.EROFS, backend.ErrInUse, "another client has the image's lock"},
		{unix.EBUSY, backend.ErrInUse, "another client has the image's lock"},
		{unix.ETIMEDOUT, backend.ErrUnavailable, "neither the monitors nor an OSD answered"},
		{unix.EINVAL, backend.ErrInvalid, "RBD_MS_MODE=legacy"},
		{unix.EIO, nil, "see the kernel's log"},
		// Of the file in sysfs, not of the image.
		{&fs.PathError{Op: "open", Path: "/sys/bus/rbd/add", Err: unix.ENOENT}, nil, "/sys/bus/rbd/add"},
		{&fs.PathError{Op: "open", Path: "/sys/bus/rbd/add", Err: unix.EROFS}, nil, "/sys/bus/rbd/add"},
		{&fs.PathError{Op: "open", Path: "/sys/bus/rbd/add", Err: unix.EACCES}, nil, "/sys/bus/rbd/add"},
	} {
		t.Run(row.err.Error(), func(t *testing.T) {
			err := explain(row.err, "")
			for _, kind := range kinds {
				if is := errors.Is(err, kind); is != (kind == row.kind) { //nolint:errorlint // the very sentinel
					t.Errorf("is it %v? %v: %v", kind, is, err)
				}
			}
			if !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q does not say %q in one line", err, row.says)
			}
		})
	}
}

func TestUnmapAndDropWriteTheNumberOfTheDevice(t *testing.T) {
	for _, row := range []struct {
		name   string
		files  []string
		remove func(*Mapper, context.Context, string) error
		id     string
		want   map[string]string
	}{
		{"unmap", []string{"remove", "remove_single_major"}, (*Mapper).Unmap, "5e4a6b8b4567",
			map[string]string{"remove": "", "remove_single_major": "3"}},
		{"drop", []string{"remove", "remove_single_major"}, (*Mapper).ForceUnmap, "5e4a6b8b4567",
			map[string]string{"remove": "", "remove_single_major": "3"}},
		{"unmap, module without single_major", []string{"remove"}, (*Mapper).Unmap, "5e4a6b8b4567", map[string]string{"remove": "3"}},
		{"drop, module without single_major", []string{"remove"}, (*Mapper).ForceUnmap, "5e4a6b8b4567", map[string]string{"remove": "3"}},
		{"unmap of what is not mapped", []string{"remove"}, (*Mapper).Unmap, "other", map[string]string{"remove": ""}},
		{"drop of what is not mapped", []string{"remove"}, (*Mapper).ForceUnmap, "other", map[string]string{"remove": ""}},
		{"unmap of an image that others mapped in another pool", []string{"remove"}, (*Mapper).Unmap, "foreign", map[string]string{"remove": ""}},
		{"unmap of a snapshot's image", []string{"remove"}, (*Mapper).Unmap, "snapped", map[string]string{"remove": ""}},
		{"unmap of the snapshot", []string{"remove"}, (*Mapper).Unmap, "snapped@monday", map[string]string{"remove": "5"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := newTree(t, row.files...)
			tr.device("0", map[string]string{"image_id": "first", "name": "db0"})
			tr.device("3", nil)
			tr.device("4", map[string]string{"image_id": "foreign", "pool": "ssd"})
			tr.device("5", map[string]string{"image_id": "snapped", "current_snap": "monday"})
			if err := row.remove(tr.mapper(), t.Context(), row.id); err != nil {
				t.Fatal(err)
			}
			for name, text := range row.want {
				tr.want(name, text)
			}
		})
	}
}

func TestWhatTheKernelAnswersIsPassedOn(t *testing.T) {
	tr := newTree(t)
	tr.device("3", nil)
	if err := os.Symlink("/dev/full", filepath.Join(tr.dir, "remove")); err != nil { // every write fails
		t.Fatal(err)
	}
	if err := tr.mapper().Unmap(t.Context(), "5e4a6b8b4567"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
}

// A cluster that cannot be reached lets the write hang; the request ends. The
// next one for the image does not meet the kernel at it.
func TestACallThatHangsOutlivesItsRequestAlone(t *testing.T) {
	tr := newTree(t)
	tr.device("3", nil)
	tr.device("4", map[string]string{"image_id": "other", "name": "db2"})
	remove := filepath.Join(tr.dir, "remove")
	if err := unix.Mkfifo(remove, 0o600); err != nil { // blocks until somebody reads
		t.Fatal(err)
	}
	m := tr.mapper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := m.Unmap(ctx, "5e4a6b8b4567")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "unmap in the kernel has not ended in time") {
		t.Errorf("got %v", err)
	}
	image := backend.Image{Name: "db1", ID: "5e4a6b8b4567"}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{
		"unmap": m.Unmap(short, image.ID), "drop": m.ForceUnmap(short, image.ID),
		"map": func() error { _, err := m.Map(short, image, backend.ReadWrite); return err }(),
	} {
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "an earlier call for this image has not ended (unmap in the kernel)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := m.Map(t.Context(), backend.Image{Name: "db2", ID: "other"}, backend.ReadWrite); err != nil {
		t.Errorf("another image: %v", err)
	}
	waits := make(chan error)
	go func() {
		_, err := m.Map(t.Context(), image, backend.ReadWrite)
		waits <- err
	}()
	got, err := os.ReadFile(remove) // and lets the writer go
	if err != nil || string(got) != "3" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

func TestTheKernelsLogIsReadFromNowOn(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0) // a record a read, as /dev/kmsg gives
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[1]) }()
	log := kernelLog(fds[0])
	defer log.close()
	if said := log.said(); said != "" {
		t.Errorf("nothing said: %q", said)
	}
	for _, record := range []string{
		"6,1,1,-;rbd: one", "6,2,2,-;usb 1-1: new device\n SUBSYSTEM=usb", "6,3,3,-;libceph: two", "3,4,4,-;rbd: three\n DEVICE=+rbd:0", "4,5,5,c;rbd: four",
		"6,6,6,-;libceph: mon0 (1)10.0.0.1:6789 session established", "6,7,7,-;libceph: client4131 fsid " + fsid,
	} {
		if _, err := unix.Write(fds[1], []byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	if said, want := log.said(), "libceph: two; rbd: three; rbd: four"; said != want {
		t.Errorf("got %q, want %q", said, want)
	}
	if err := explain(unix.EIO, "rbd: four"); !strings.Contains(err.Error(), "the kernel's log says: rbd: four") {
		t.Error(err)
	}
	none := (&Mapper{Kmsg: filepath.Join(t.TempDir(), "none")}).listen()
	if said := none.said(); said != "" {
		t.Errorf("no log: %q", said)
	}
	none.close()
}

func TestMapOfAMappedImageIsTheMappingThatIsThere(t *testing.T) {
	tr := newTree(t, "add", "add_single_major")
	tr.device("7", nil)
	got, err := tr.mapper().Map(t.Context(), backend.Image{Name: "db1", ID: "5e4a6b8b4567", Features: []string{"journaling"}}, backend.ReadWrite)
	want := backend.Mapping{Name: "db1", ID: "5e4a6b8b4567", Device: "/dev/rbd7", Addr: "192.168.1.5:0/1913726304", Alive: true, Mode: backend.ReadWrite}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	tr.want("add", "")
	tr.want("add_single_major", "")
}

func TestMapWritesNothingUntilAllIsKnown(t *testing.T) {
	image := backend.Image{Name: "db1", ID: "new", Features: []string{"layering", "exclusive-lock"}}
	for _, row := range []struct {
		name  string
		image backend.Image
		ceph  func() (rbd.Kernel, error)
		kind  error
	}{
		{"features", backend.Image{Name: "db1", ID: "new", Features: []string{"journaling"}}, nil, backend.ErrInvalid},
		{"no exclusive-lock", backend.Image{Name: "db1", ID: "new", Features: []string{"layering"}}, nil, backend.ErrInvalid},
		{"Ceph does not answer", image, func() (rbd.Kernel, error) { return rbd.Kernel{}, backend.ErrUnavailable }, backend.ErrUnavailable},
		{"no monitors", image, func() (rbd.Kernel, error) { return rbd.Kernel{User: "docker", Key: secret}, nil }, nil},
		{"name with a blank", backend.Image{Name: "db 1", ID: "new", Features: image.Features}, func() (rbd.Kernel, error) { return both, nil }, backend.ErrInvalid},
		{"the key is none", image, func() (rbd.Kernel, error) {
			k := both
			k.Key = "hunter2!"
			return k, nil
		}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := newTree(t, "add", "add_single_major")
			tr.file("supported_features", "0x1bf\n")
			m := tr.mapper()
			if row.ceph != nil {
				m.Ceph = cluster(row.ceph)
			}
			got, err := m.Map(t.Context(), row.image, backend.ReadWrite)
			if err == nil || got != (backend.Mapping{}) || row.kind != nil && !errors.Is(err, row.kind) {
				t.Errorf("got %+v, %v; want %v", got, err, row.kind)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), secret)) {
				t.Errorf("the key is in the error: %v", err)
			}
			tr.want("add", "")
			tr.want("add_single_major", "")
		})
	}
}

// What cannot be read, here as it is a directory, is not gone.
func TestWhatCannotBeReadIsNotGone(t *testing.T) {
	image := backend.Image{Name: "db1", ID: "5e4a6b8b4567", Features: []string{"layering", "exclusive-lock"}}
	for _, file := range []string{
		"devices/7/pool", "devices/7/pool_ns", "devices/7/config_info", "devices/7/cluster_fsid", "devices/7/name", "devices/7/image_id",
		"devices/7/client_addr", "devices/7/current_snap", "block/dm-3/dm/name",
	} {
		tr := newTree(t, "add", "add_single_major", "remove", "remove_single_major")
		tr.device("7", nil)
		tr.file("block/dm-3/dm/name", "docker-volume-rbd7\n")
		path := filepath.Join(tr.dir, file)
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
			t.Fatal(err)
		}
		m := tr.mapper()
		m.Block = filepath.Join(tr.dir, "block")
		if all, err := m.Mappings(t.Context()); err == nil || len(all) > 0 {
			t.Errorf("%s cannot be read, and mapped is %+v, %v", file, all, err)
		}
		if _, err := m.Map(t.Context(), image, backend.ReadWrite); err == nil {
			t.Errorf("%s cannot be read, and the image was mapped once more", file)
		}
		if err := m.Unmap(t.Context(), image.ID); err == nil {
			t.Errorf("%s cannot be read, and nothing to unmap was found", file)
		}
		tr.want("add_single_major", "")
		tr.want("remove_single_major", "")
	}
}
