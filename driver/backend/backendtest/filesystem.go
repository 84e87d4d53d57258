package backendtest

import (
	"path/filepath"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Devices is where filesystems are tested.
type Devices struct {
	// New returns a block device that was never written.
	New func(t *testing.T, size uint64) string
	// Dir is an empty directory for mount points.
	Dir string
	// Use keeps a file open under a mount point until release is called.
	Use func(t *testing.T, path string) (release func())
	// Hold mounts what is mounted there once more, as a container does, in a mount
	// namespace of its own, until release is called.
	Hold func(t *testing.T, path string) (release func())
	// Larger makes a device of New larger.
	Larger func(t *testing.T, device string, size uint64)
	// Grows tells whether this machine may grow a mounted filesystem: for ext4 the
	// kernel wants CAP_SYS_RESOURCE, which not every machine for tests has. nil = yes.
	Grows func(fstype string) bool
}

// Filesystem is the contract of backend.Filesystem.
func Filesystem(t *testing.T, fs backend.Filesystem, devices Devices) {
	for fstype, size := range map[string]uint64{"ext4": 8 * mib, "xfs": 300 * mib, "btrfs": 128 * mib} {
		t.Run(fstype+" is made, found, checked and mounted", func(t *testing.T) {
			ctx, device := testContext(t), devices.New(t, size)
			must(t, fs.Format(ctx, device, fstype, nil, true))
			found, err := fs.Probe(ctx, device)
			must(t, err)
			if found != fstype {
				t.Errorf("probed %q", found)
			}
			must(t, fs.Check(ctx, device, fstype))
			m := backend.Mount{Device: device, Path: filepath.Join(devices.Dir, fstype), FSType: fstype, Options: "noatime"}
			must(t, fs.Mount(ctx, m))
			must(t, fs.Mount(ctx, m))
			must(t, fs.InitRoot(ctx, m.Path, backend.Owner{}))
			must(t, fs.Check(ctx, device, fstype)) // in use: nothing is done to it
			mounts, err := fs.Mounted(ctx, devices.Dir)
			must(t, err)
			if got := mounts[m.Path]; got.Device != device || got.FSType != fstype || got.Path != m.Path {
				t.Errorf("mounted: %+v", mounts)
			}
			if err := fs.Format(ctx, device, fstype, nil, false); err == nil {
				t.Error("a mounted filesystem was formatted")
			}
			must(t, fs.Unmount(ctx, m.Path))
			must(t, fs.Unmount(ctx, m.Path))
			must(t, fs.Format(ctx, device, fstype, nil, false)) // begun again after a crash
			needsResize(t, fs, device, fstype, false)
			devices.Larger(t, device, 2*size)
			needsResize(t, fs, device, fstype, true)
			must(t, fs.RegenerateUUID(ctx, m))
			must(t, fs.Mount(ctx, m))
			before, _, err := fs.Usage(ctx, m.Path)
			must(t, err)
			must(t, fs.Freeze(ctx, m.Path))
			must(t, fs.Freeze(ctx, m.Path))
			must(t, fs.Thaw(ctx, m.Path))
			must(t, fs.Thaw(ctx, m.Path))
			if devices.Grows != nil && !devices.Grows(fstype) {
				if err := fs.Resize(ctx, m); err == nil {
					t.Error("it was grown without the right to do so")
				}
				must(t, fs.Unmount(ctx, m.Path))
				return
			}
			must(t, fs.Resize(ctx, m))
			must(t, fs.Resize(ctx, m))
			if after, used, err := fs.Usage(ctx, m.Path); err != nil || after < before+size*3/4 || used > after {
				t.Errorf("size before growth %d, after %d, used %d, %v", before, after, used, err)
			}
			_, err = fs.Subpath(ctx, m.Path, "missing")
			want(t, err, backend.ErrUnexpectedContent)
			must(t, fs.Unmount(ctx, m.Path))
			needsResize(t, fs, device, fstype, false)
		})
	}
	t.Run("a device without a filesystem is not mounted", func(t *testing.T) {
		ctx, device := testContext(t), devices.New(t, 8*mib)
		_, err := fs.Probe(ctx, device)
		want(t, err, backend.ErrUnexpectedContent)
		if err := fs.Mount(ctx, backend.Mount{Device: device, Path: filepath.Join(devices.Dir, "blank"), FSType: "ext4"}); err == nil {
			t.Error("it was mounted")
		}
		mounts, err := fs.Mounted(ctx, devices.Dir)
		must(t, err)
		if len(mounts) != 0 {
			t.Errorf("mounted: %v", mounts)
		}
	})
	t.Run("a mount point has one device", func(t *testing.T) {
		ctx, a, b := testContext(t), devices.New(t, 8*mib), devices.New(t, 8*mib)
		must(t, fs.Format(ctx, a, "ext4", nil, true))
		must(t, fs.Format(ctx, b, "ext4", nil, true))
		path := filepath.Join(devices.Dir, "one")
		must(t, fs.Mount(ctx, backend.Mount{Device: a, Path: path, FSType: "ext4"}))
		want(t, fs.Mount(ctx, backend.Mount{Device: b, Path: path, FSType: "ext4"}), backend.ErrBusy)
		must(t, fs.Unmount(ctx, path))
	})
	t.Run("detach unmounts what is in use", func(t *testing.T) {
		ctx, device := testContext(t), devices.New(t, 8*mib)
		must(t, fs.Format(ctx, device, "ext4", nil, true))
		path := filepath.Join(devices.Dir, "used")
		must(t, fs.Mount(ctx, backend.Mount{Device: device, Path: path, FSType: "ext4"}))
		release := devices.Use(t, path)
		must(t, fs.LazyUnmount(ctx, path))
		must(t, fs.LazyUnmount(ctx, path))
		release()
		mounts, err := fs.Mounted(ctx, devices.Dir)
		must(t, err)
		if len(mounts) != 0 {
			t.Errorf("mounted: %v", mounts)
		}
	})
	t.Run("what a container has mounted is held", func(t *testing.T) {
		ctx, a, b := testContext(t), devices.New(t, 8*mib), devices.New(t, 8*mib)
		held := func(want bool) {
			t.Helper()
			got, err := fs.Held(ctx, devices.Dir, []string{a, b})
			must(t, err)
			if _, looked := got[b]; got[a] != want || got[b] || !looked {
				t.Errorf("held: %v, want %v of %s", got, want, a)
			}
		}
		must(t, fs.Format(ctx, a, "ext4", nil, true))
		m := backend.Mount{Device: a, Path: filepath.Join(devices.Dir, "held"), FSType: "ext4"}
		held(false)
		must(t, fs.Mount(ctx, m))
		held(false)
		release := devices.Hold(t, m.Path)
		held(true)
		must(t, fs.Unmount(ctx, m.Path))
		held(true)
		must(t, fs.Mount(ctx, m))
		held(true)
		release()
		held(false)
		must(t, fs.Unmount(ctx, m.Path))
	})
	t.Run("an option that mkfs refuses is an error", func(t *testing.T) {
		ctx, device := testContext(t), devices.New(t, 8*mib)
		if err := fs.Format(ctx, device, "ext4", []string{"--refused"}, true); err == nil {
			t.Error("it was accepted")
		}
	})
}

func needsResize(t *testing.T, fs backend.Filesystem, device, fstype string, want bool) {
	t.Helper()
	if got, err := fs.NeedsResize(testContext(t), device, fstype); err != nil || got != want {
		t.Errorf("%s takes less than its device: %v, %v", fstype, got, err)
	}
}
