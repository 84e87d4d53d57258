package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// device is a loop device on a sparse file.
func device(t *testing.T, size uint64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, int64(size)); err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(testbed.Run(t, "losetup", "--show", "--find", file))
	t.Cleanup(func() { testbed.Run(t, "losetup", "--detach", dev) })
	return dev
}

// table is the mount table of a process.
func table(tb testing.TB, path string) *fsys.Table {
	tb.Helper()
	all, err := fsys.OpenTable(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = all.Close() })
	return all
}

func TestFilesystemContract(t *testing.T) {
	backendtest.Filesystem(t, fsys.FS{HostMounts: table(t, "/proc/1/mountinfo")}, backendtest.Devices{
		New: device,
		Dir: t.TempDir(),
		Larger: func(t *testing.T, device string, size uint64) {
			file := strings.TrimSpace(testbed.Run(t, "losetup", "--noheadings", "--output", "BACK-FILE", device))
			if err := os.Truncate(file, int64(size)); err != nil {
				t.Fatal(err)
			}
			testbed.Run(t, "losetup", "--set-capacity", device)
		},
		Grows: func(fstype string) bool { return fstype != "ext4" || testbed.Capable(t, unix.CAP_SYS_RESOURCE) },
		Hold: func(t *testing.T, path string) func() {
			return inNamespace(t, "slave", "mount --bind "+path+" "+t.TempDir())
		},
		Use: func(t *testing.T, path string) func() {
			f, err := os.Create(filepath.Join(path, "open"))
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = f.Close() }
		},
	})
}

func TestAFrozenFilesystemHoldsItsWritersUp(t *testing.T) {
	fs, m := fsys.FS{}, backend.Mount{Device: device(t, 8<<20), Path: filepath.Join(t.TempDir(), "m"), FSType: "ext4"}
	if err := errors.Join(fs.Format(t.Context(), m.Device, "ext4", nil, true), fs.Mount(t.Context(), m), fs.Freeze(t.Context(), m.Path)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- os.WriteFile(filepath.Join(m.Path, "file"), []byte("x"), 0o600) }()
	select {
	case err := <-ended:
		t.Errorf("it was written to, frozen: %v", err)
		ended <- err
	case <-time.After(200 * time.Millisecond):
	}
	if err := errors.Join(fs.Thaw(t.Context(), m.Path), <-ended, fs.Unmount(t.Context(), m.Path)); err != nil {
		t.Error(err)
	}
}

func TestARootIsPreparedAsItWasAskedFor(t *testing.T) {
	dev, fs, path := device(t, 16<<20), fsys.FS{}, filepath.Join(t.TempDir(), "v")
	if err := fs.Format(t.Context(), dev, "ext4", nil, true); err != nil {
		t.Fatal(err)
	}
	if err := fs.Mount(t.Context(), backend.Mount{Device: dev, Path: path, FSType: "ext4", Options: "noatime"}); err != nil {
		t.Fatal(err)
	}
	uid, gid, mode := uint32(1001), uint32(1002), uint32(0o2770)
	if err := fs.InitRoot(t.Context(), path, backend.Owner{UID: &uid, GID: &gid, Mode: &mode}); err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Uid != uid || stat.Gid != gid || stat.Mode&0o7777 != mode {
		t.Errorf("owner %d:%d, mode %o", stat.Uid, stat.Gid, stat.Mode&0o7777)
	}
	if files, err := os.ReadDir(path); err != nil || len(files) != 0 {
		t.Errorf("not empty, so that docker would not copy into it: %v, %v", files, err)
	}
	if err := fs.Unmount(t.Context(), path); err != nil {
		t.Fatal(err)
	}
}

// A fresh image stays thin: what mkfs writes to 20 GiB is a few MiB.
func TestAFreshFilesystemIsThin(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		dev := device(t, 20<<30)
		if err := (fsys.FS{}).Format(t.Context(), dev, fstype, nil, true); err != nil {
			t.Fatal(err)
		}
		backing := strings.TrimSpace(testbed.Run(t, "losetup", "--noheadings", "--output", "BACK-FILE", dev))
		var stat unix.Stat_t
		if err := unix.Stat(backing, &stat); err != nil {
			t.Fatal(err)
		}
		if mb := stat.Blocks * 512 >> 20; mb > 80 {
			t.Errorf("%s wrote %d MiB", fstype, mb)
		}
	}
}

func TestADamagedFilesystemIsCheckedBeforeItIsMounted(t *testing.T) {
	dev, fs := device(t, 64<<20), fsys.FS{}
	if err := fs.Format(t.Context(), dev, "ext4", nil, true); err != nil {
		t.Fatal(err)
	}
	// What e2fsck -p repairs by itself ...
	testbed.Run(t, "debugfs", "-w", "-R", "set_super_value free_blocks_count 7", dev)
	testbed.Run(t, "debugfs", "-w", "-R", "set_super_value state 2", dev) // errors: look at all of it
	if err := fs.Check(t.Context(), dev, "ext4"); err != nil {
		t.Errorf("a wrong count: %v", err)
	}
	if free := strings.TrimSpace(testbed.Run(t, "sh", "-c", "dumpe2fs -h "+dev+" 2>/dev/null | sed -n 's/^Free blocks: *//p'")); free == "7" {
		t.Error("the wrong count was not repaired")
	}
	// A check that is due is done, though all is in order.
	checked := func() string {
		return testbed.Run(t, "sh", "-c", "dumpe2fs -h "+dev+" 2>/dev/null | grep '^Mount count'")
	}
	testbed.Run(t, "tune2fs", "-c", "5", "-C", "7", dev)
	if err := fs.Check(t.Context(), dev, "ext4"); err != nil || !strings.HasSuffix(strings.TrimSpace(checked()), " 0") {
		t.Errorf("a check that was due: %v, %s", err, checked())
	}
	// ... and what needs a decision, found before or by the mount.
	for _, state := range []string{"2", "1"} {
		testbed.Run(t, "debugfs", "-w", "-R", "set_super_value state "+state, dev)
		testbed.Run(t, "tune2fs", "-c", "0", dev)
		testbed.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=4k", "seek=20", "count=200", "conv=fsync")
		err := fs.Check(t.Context(), dev, "ext4")
		if err == nil {
			err = fs.Mount(t.Context(), backend.Mount{Device: dev, Path: filepath.Join(t.TempDir(), "v"), FSType: "ext4"})
		}
		if err == nil || !strings.Contains(err.Error(), "run e2fsck") || strings.Contains(err.Error(), "\n") {
			t.Errorf("state %s, lost inodes: %v", state, err)
		}
	}
}

// Errors stop ext4 and shut xfs down; a mount shows it without being written to. What
// the mount table says of an ext4 with errors depends on the kernel. One that goes on
// in spite of them is the same on all, and as on those where nothing shows it.
func TestABrokenMountIsNotSound(t *testing.T) {
	trigger := func(dev, _ string) {
		testbed.Run(t, "sh", "-c", "echo broken >/sys/fs/ext4/"+filepath.Base(dev)+"/trigger_fs_error")
	}
	for _, row := range []struct {
		fstype, options string
		size            uint64
		breaks          func(dev, path string)
	}{
		{"ext4", volume.DefaultMountOptions["ext4"], 64 << 20, trigger},
		{"ext4", "errors=continue", 64 << 20, trigger},
		{"xfs", volume.DefaultMountOptions["xfs"], 300 << 20, func(_, path string) { testbed.Run(t, "xfs_io", "-x", "-c", "shutdown", path) }},
	} {
		t.Run(row.fstype+" "+row.options, func(t *testing.T) {
			fs := fsys.FS{}
			m := backend.Mount{Device: device(t, row.size), Path: filepath.Join(t.TempDir(), "v"), FSType: row.fstype, Options: row.options}
			for _, err := range []error{fs.Format(t.Context(), m.Device, row.fstype, nil, true), fs.Mount(t.Context(), m), fs.CheckHealth(t.Context(), m)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			row.breaks(m.Device, m.Path)
			// With errors=continue the kernel counts a little later (ext4: s_error_work).
			err := tool.Within(10*time.Second, func() error {
				if err := fs.CheckHealth(t.Context(), m); !errors.Is(err, backend.ErrUnexpectedContent) || !strings.Contains(err.Error(), m.Device) {
					return fmt.Errorf("got %w", err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			for _, err := range []error{
				fs.Unmount(t.Context(), m.Path), fs.Check(t.Context(), m.Device, row.fstype), fs.Mount(t.Context(), m),
				fs.CheckHealth(t.Context(), m), fs.Unmount(t.Context(), m.Path),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			ro := m
			ro.Options = "ro"
			if err := errors.Join(fs.Mount(t.Context(), ro), fs.CheckHealth(t.Context(), ro), fs.Unmount(t.Context(), ro.Path)); err != nil {
				t.Errorf("asked for read-only: %v", err)
			}
		})
	}
}

func TestAMountThatDoesNotReachTheHostFails(t *testing.T) {
	dev, path := device(t, 16<<20), filepath.Join(t.TempDir(), "v")
	hosts := filepath.Join(t.TempDir(), "mountinfo")
	data, err := os.ReadFile("/proc/self/mountinfo") // of before the mount
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, data, 0o600); err != nil {
		t.Fatal(err)
	}
	fs := fsys.FS{HostMounts: table(t, hosts)}
	if err := fs.Format(t.Context(), dev, "ext4", nil, true); err != nil {
		t.Fatal(err)
	}
	err = fs.Mount(t.Context(), backend.Mount{Device: dev, Path: path, FSType: "ext4"})
	if err == nil || !strings.Contains(err.Error(), "does not reach the host") {
		t.Errorf("got %v", err)
	}
	if err := exec.Command("mountpoint", "-q", path).Run(); err == nil {
		t.Error("the mount was left behind")
	}
	dir := t.TempDir()
	if err := fs.CheckPropagation(t.Context(), dir); !errors.Is(err, backend.ErrNotPropagated) {
		t.Errorf("asked beforehand: %v", err)
	}
	if err := (fsys.FS{HostMounts: table(t, "/proc/self/mountinfo")}).CheckPropagation(t.Context(), dir); err != nil {
		t.Errorf("a host that sees it: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What has started the plugin may end, and its number may become that of a process
// which sees other mounts. The table is still that of the host, as it is now.
func TestTheHostsMountTableOutlivesWhoWasAskedForIt(t *testing.T) {
	starter := exec.CommandContext(t.Context(), "sleep", "60")
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	fs := fsys.FS{HostMounts: table(t, fmt.Sprintf("/proc/%d/mountinfo", starter.Process.Pid))}
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait()
	for range 2 {
		m := backend.Mount{Device: device(t, 16<<20), Path: filepath.Join(t.TempDir(), "v"), FSType: "ext4"}
		if err := errors.Join(fs.Format(t.Context(), m.Device, "ext4", nil, true), fs.Mount(t.Context(), m), fs.Unmount(t.Context(), m.Path)); err != nil {
			t.Error(err)
		}
		if err := fs.CheckPropagation(t.Context(), t.TempDir()); err != nil {
			t.Error(err)
		}
	}
}
