package inside

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
)

// What the test outside has prepared.
var (
	socket = os.Getenv("PLUGIN_SOCKET")
	volume = os.Getenv("VOLUME")         // with a filesystem, and for the many, VOLUME0 to VOLUME29
	line   = os.Getenv("ADD_LINE")       // what the kernel is to be told to map VOLUME
	raw    = os.Getenv("RAW_DEVICE")     // a device of the same size, with nothing on it
	volDir = os.Getenv("VOLUME_MOUNTED") // where a volume is mounted by the plugin
	encDir = os.Getenv("LUKS_MOUNTED")   // and an encrypted one
)

var client = http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}}}

// ask is a request as dockerd sends it.
func ask(op, volume string) error {
	body, err := json.Marshal(map[string]string{"Name": volume, "ID": "bench"})
	if err != nil {
		return err
	}
	resp, err := client.Post("http://rbd/VolumeDriver."+op, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var a struct{ Err string }
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return err
	}
	if a.Err != "" {
		return errors.New(a.Err)
	}
	return nil
}

// measure does and undoes, and reports the medians of both.
func measure(b *testing.B, do, undo func() error) {
	var done, undone []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if err := undo(); err != nil {
			b.Fatal(err)
		}
		done, undone = append(done, middle.Sub(began)), append(undone, time.Since(middle))
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return all[len(all)/2].Seconds() * 1000
	}
	b.ReportMetric(median(done), "mount-ms")
	b.ReportMetric(median(undone), "unmount-ms")
}

func run(args ...string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteString(text)
	return err
}

// BenchmarkMount is a volume with a filesystem, from nothing to mounted.
func BenchmarkMount(b *testing.B) {
	b.Run("plugin", func(b *testing.B) {
		measure(b, func() error { return ask("Mount", volume) }, func() error { return ask("Unmount", volume) })
	})
	dir := b.TempDir()
	b.Run("parts", func(b *testing.B) { // of the plugin, without the guard: what maps, and what mounts
		pool := rbd.New(rbd.Config{Cluster: "ceph", User: "client.docker", Pool: "rbd", Log: logrus.New()})
		defer pool.Close()
		ctx := context.Background()
		h, err := pool.Open(ctx, volume, backend.ReadOnly)
		if err != nil {
			b.Fatal(err)
		}
		image := h.Image()
		_ = h.Close(ctx)
		hosts, err := fsys.OpenTable("/proc/1/mountinfo")
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = hosts.Close() }()
		m, fs, path := krbd.Mapper{Ceph: pool, Pool: "rbd"}, fsys.FS{HostMounts: hosts}, filepath.Join(dir, "parts")
		measure(b, func() error {
			device, err := m.Map(ctx, image, backend.ReadWrite)
			if err != nil {
				return err
			}
			return fs.Mount(ctx, backend.Mount{Device: device.Device, Path: path, FSType: "ext4", Options: "noatime"})
		}, func() error {
			if err := fs.Unmount(ctx, path); err != nil {
				return err
			}
			return m.Unmap(ctx, image.ID)
		})
	})
	b.Run("syscalls", func(b *testing.B) { // two of them: write to sysfs, mount
		var number string
		measure(b, func() error {
			if err := write("/sys/bus/rbd/add_single_major", line); err != nil {
				return err
			}
			names, err := filepath.Glob("/sys/bus/rbd/devices/*/name")
			for _, name := range names {
				if text, _ := os.ReadFile(name); strings.TrimSpace(string(text)) == volume {
					number = filepath.Base(filepath.Dir(name))
				}
			}
			if err != nil {
				return err
			}
			return unix.Mount("/dev/rbd"+number, dir, "ext4", unix.MS_NOATIME, "")
		}, func() error {
			if err := unix.Unmount(dir, 0); err != nil {
				return err
			}
			return write("/sys/bus/rbd/remove_single_major", number)
		})
	})
	b.Run("tools", func(b *testing.B) { // as peers run them
		var device string
		measure(b, func() (err error) {
			if device, err = run("rbd", "--id", "docker", "device", "map", "-o", "noudev", "rbd/"+volume); err == nil {
				_, err = run("mount", device, dir)
			}
			return err
		}, func() error {
			if _, err := run("umount", dir); err != nil {
				return err
			}
			_, err := run("rbd", "--id", "docker", "device", "unmap", "-o", "noudev", device)
			return err
		})
	})
}

// BenchmarkMany mounts thirty volumes.
func BenchmarkMany(b *testing.B) {
	const many = 30
	each := func(op string, at func(func())) error {
		var mu sync.Mutex
		var errs []error
		var wg sync.WaitGroup
		for i := range many {
			wg.Add(1)
			at(func() {
				defer wg.Done()
				err := ask(op, fmt.Sprintf("%s%d", volume, i))
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	for name, at := range map[string]func(func()){"together": func(f func()) { go f() }, "in turn": func(f func()) { f() }} {
		b.Run(name, func(b *testing.B) {
			measure(b, func() error { return each("Mount", at) }, func() error { return each("Unmount", at) })
		})
	}
}

// BenchmarkStream writes and reads in blocks of 4 MiB past the page cache, in
// turn to a file of a volume that the plugin has mounted, of an encrypted one, and to
// a raw device.
func BenchmarkStream(b *testing.B) {
	const block, blocks = 4 << 20, 16
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		b.Fatal(err)
	}
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	pass := func(path string, flags int, io func(f *os.File, off int64) error) float64 {
		f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		began := time.Now()
		for i := range blocks {
			if err := io(f, int64(i)*block); err != nil {
				b.Fatal(err)
			}
		}
		if flags != os.O_RDONLY {
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		return float64(block*blocks) / 1e6 / time.Since(began).Seconds()
	}
	w := func(f *os.File, off int64) error { _, err := f.WriteAt(buf, off); return err }
	r := func(f *os.File, off int64) error { _, err := f.ReadAt(buf, off); return err }
	paths := map[string]string{"volume": filepath.Join(volDir, "stream"), "luks": filepath.Join(encDir, "stream"), "raw": raw}
	speeds := map[string][]float64{}
	for b.Loop() {
		for name, path := range paths {
			speeds[name+"-write"] = append(speeds[name+"-write"], pass(path, os.O_RDWR|os.O_CREATE, w))
		}
		for name, path := range paths {
			speeds[name+"-read"] = append(speeds[name+"-read"], pass(path, os.O_RDONLY, r))
		}
	}
	for name, all := range speeds {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name+"-MB/s")
	}
}
