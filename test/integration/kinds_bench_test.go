package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// Copies are benchmarked of a volume of 100 GiB with so many GiB in it. A cluster in
// memory has room for little: for more start one on disks and name it in TEST_CLUSTER.
func copyGiB() int {
	if n, err := strconv.Atoi(os.Getenv("COPY_GIB")); err == nil {
		return n
	}
	return 1
}

// written fills a file, past the page cache, and returns when it is safe.
func written(tb testing.TB, file string, mib int) {
	tb.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	block, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = unix.Munmap(block) }()
	for i := range block {
		block[i] = byte(i * 7)
	}
	for range mib / 4 {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		tb.Fatal(err)
	}
}

// From the request for a copy until it is mounted.
func BenchmarkCopy(b *testing.B) {
	n, name := newNode(b, testbed.Namespace(b), "one"), names("c")
	n.create("v", map[string]string{"size": "100G"})
	file := n.mount("v")
	for i := range copyGiB() {
		written(b, file+strconv.Itoa(i), 1<<10)
	}
	b.ResetTimer()
	for b.Loop() {
		volume := name()
		n.create(volume, map[string]string{"from": "v"})
		n.mount(volume)
		b.StopTimer()
		n.unmount(volume)
		if err := n.Remove(n.context(time.Minute), volume); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.StopTimer()
	n.unmount("v")
}

// written512 counts the sectors of 512 bytes that were ever written to loop devices, of
// which there should be no other than the benchmark's (Documentation/block/stat.rst).
func written512() (sectors float64) {
	stats, _ := filepath.Glob("/sys/block/loop*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		if fields := strings.Fields(string(text)); len(fields) > 6 {
			n, _ := strconv.ParseFloat(fields[6], 64)
			sectors += n
		}
	}
	return sectors
}

// What the first mount of a volume of 100 GiB writes, filesystem and all.
func BenchmarkFirstMountOf100GiB(b *testing.B) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		b.Run(fstype, func(b *testing.B) {
			n, name := newNode(b, testbed.Namespace(b), "one"), names("f")
			sectors := 0.0
			for b.Loop() {
				volume := name()
				n.create(volume, map[string]string{"size": "100G", "fstype": fstype})
				before := written512()
				n.mount(volume)
				b.StopTimer()
				sectors += written512() - before
				n.unmount(volume)
				b.StartTimer()
			}
			b.ReportMetric(sectors*512/1e6/float64(b.N), "MB-written")
		})
	}
}

// From rbd resize until the container would see the space.
func BenchmarkGrowth(b *testing.B) {
	cfg := testbed.Namespace(b)
	n := newNode(b, cfg, "one")
	go n.Follow(b.Context(), time.Second)
	n.create("v", map[string]string{"size": "400M", "fstype": "xfs"})
	dir := filepath.Dir(n.mount("v"))
	blocks := func() uint64 {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			b.Fatal(err)
		}
		return s.Blocks
	}
	size := 400
	for b.Loop() {
		before := blocks()
		size += 200
		testbed.RBD(b, "resize", "--no-progress", "--size", strconv.Itoa(size), cfg.Pool+"/"+cfg.Namespace+"/v")
		for blocks() == before {
			time.Sleep(5 * time.Millisecond)
		}
	}
	n.unmount("v")
}

// Sequential writes and reads of files, encrypted and not.
func BenchmarkThroughput(b *testing.B) {
	testbed.Passphrase(b, "bench", "open sesame")
	for _, format := range []string{"none", "luks1", "luks2"} {
		n := newNode(b, testbed.Namespace(b), "one")
		options := map[string]string{"size": "2G", "encryption": format}
		if format != "none" {
			options["passphrase"] = "ceph:bench"
		}
		n.create("v", options)
		file := n.mount("v")
		b.Run("write/"+format, func(b *testing.B) {
			b.SetBytes(256 << 20)
			for b.Loop() {
				written(b, file, 256)
			}
		})
		b.Run("read/"+format, func(b *testing.B) {
			b.SetBytes(256 << 20)
			for b.Loop() {
				testbed.Run(b, "dd", "if="+file, "of=/dev/null", "bs=4M", "iflag=direct", "status=none")
			}
		})
		n.unmount("v")
		if err := n.Remove(n.context(time.Minute), "v"); err != nil { // a cluster in memory is small
			b.Fatal(err)
		}
	}
}
