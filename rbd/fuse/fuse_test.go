package fuse_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// node has a directory for its mounts, and checks at the end of the test that
// nothing is left in it or of it.
func node(t *testing.T, cfg rbd.Config) (n backendtest.Node, dir string) {
	dir = t.TempDir()
	mapper := func() backend.Mapper {
		return &fuse.Mapper{Ceph: cfg, Dir: dir, Command: testbed.ImageServer(t), Log: testbed.Log(t)}
	}
	t.Cleanup(func() { testbed.NothingLeft(t, dir) })
	return backendtest.Node{
		Mapper: mapper,
		Hold: func(t *testing.T, device string) func() {
			fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = unix.Close(fd) }
		},
		Write: func(device, text string) error { return write(device, 0, []byte(text)) },
		Read: func(device string) (string, error) {
			data, err := read(device, 0, 512)
			return string(bytes.TrimRight(data, "\x00")), err
		},
	}, dir
}

// aligned is memory as O_DIRECT wants it.
func aligned(n int) []byte {
	mem, err := unix.Mmap(-1, 0, (n+4095)/4096*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return mem[:n]
}

// write writes whole sectors, directly, and flushes.
func write(device string, off int64, data []byte) error {
	file, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	buf := aligned((len(data) + 511) / 512 * 512)
	copy(buf, data)
	if _, err := file.WriteAt(buf, off); err != nil {
		return err
	}
	return file.Sync()
}

func read(device string, off int64, n int) ([]byte, error) {
	file, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	buf := aligned(n)
	_, err = file.ReadAt(buf, off)
	return buf, err
}

func TestContract(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	one, _ := node(t, cfg)
	two, _ := node(t, cfg)
	t.Run("Encrypted", func(t *testing.T) { backendtest.Encrypted(t, pool, one, two, "luks1", "luks2") })
	backendtest.Mapper(t, pool, func(t *testing.T, image, name string) {
		testbed.RBD(t, "snap", "create", "--no-progress", "rbd/"+cfg.Namespace+"/"+image+"@"+name)
	}, one, two)
}

// mapped maps one image and returns what is needed to play with it.
func mapped(t *testing.T, size uint64) (*rbd.Pool, backendtest.Node, string, backend.Mapping, backend.Mapper) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	n, dir := node(t, cfg)
	m := n.Mapper()
	got, err := m.Map(t.Context(), backendtest.Create(t, pool, "image", size), backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	return pool, n, dir, got, m
}

// otherNamespace makes a mount namespace, as anybody may: what is mounted now stays
// mounted in it.
func otherNamespace(t *testing.T) (end func()) {
	t.Helper()
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "1d")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = other.Process.Kill(); _ = other.Wait() })
	t.Cleanup(end)
	own := testbed.Run(t, "readlink", "/proc/self/ns/mnt")
	for limit := time.Now().Add(time.Minute); testbed.Run(t, "readlink", "/proc/"+strconv.Itoa(other.Process.Pid)+"/ns/mnt") == own; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("no other mount namespace")
		}
	}
	return end
}

// Whoever makes a mount namespace has a copy of the image server's mount in it, and the
// server does not end with ours. Its image is unmapped all the same, with what was
// written; and after a plugin was killed just then, or its request had no more time, by
// the next one.
func TestACopyOfTheMountKeepsNobodyWaiting(t *testing.T) {
	for name, patience := range map[string]time.Duration{"unmap": time.Minute, "sweep": time.Second / 2} {
		t.Run(name, func(t *testing.T) {
			fuse.Impatient(t)
			pool, n, dir, mapping, m := mapped(t, 8<<20)
			end := otherNamespace(t)
			if err := n.Write(mapping.Device, "written"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := m.Unmap(ctx, mapping.ID); (err == nil) != (name == "unmap") {
				t.Fatal(err)
			}
			if name == "sweep" {
				m = n.Mapper()
				if err := m.(*fuse.Mapper).Sweep(); err != nil {
					t.Fatal(err)
				}
				for limit := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
					left, err := os.Open(filepath.Join(dir, mapping.ID+".lock"))
					if err != nil {
						t.Fatal(err)
					}
					err = unix.Flock(int(left.Fd()), unix.LOCK_EX|unix.LOCK_NB)
					_ = left.Close()
					if err == nil {
						break
					}
					if time.Now().After(limit) {
						t.Fatal("its image server has not ended")
					}
				}
			}
			h, err := pool.Open(t.Context(), "image", backend.ReadOnly)
			if err != nil {
				t.Fatal(err)
			}
			image := h.Image()
			if err := h.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			again, err := m.Map(t.Context(), image, backend.ReadWrite)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := n.Read(again.Device); err != nil || got != "written" {
				t.Errorf("it holds %q, %v", got, err)
			}
			end()
			if err := m.Unmap(t.Context(), mapping.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The settings may name another pool when the plugin starts again: what is mapped of the
// one before serves its containers, and no sweep ends it.
func TestASweepLeavesAloneWhatIsMapped(t *testing.T) {
	fuse.Impatient(t)
	_, n, _, mapping, m := mapped(t, 8<<20)
	other := n.Mapper().(*fuse.Mapper)
	other.Ceph.Namespace = "another"
	if err := other.Sweep(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	if err := n.Write(mapping.Device, "written"); err != nil {
		t.Error(err)
	}
	if err := m.Unmap(t.Context(), mapping.ID); err != nil {
		t.Fatal(err)
	}
}

func used(t *testing.T, pool *rbd.Pool) uint64 {
	h, err := pool.Open(t.Context(), "image", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	n, _, err := h.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDiscardReachesCephAndZeroes(t *testing.T) {
	pool, _, _, m, mapper := mapped(t, 64<<20)
	ones := bytes.Repeat([]byte{1}, 12<<20)
	if err := write(m.Device, 0, ones); err != nil {
		t.Fatal(err)
	}
	before := used(t, pool)
	dev, err := os.OpenFile(m.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Not aligned to anything of Ceph's: the rest must stay, and this be zero.
	const off, length = 1<<20 + 512, 9<<20 + 1024
	testbed.Run(t, "blkdiscard", "-o", "1049088", "-l", "9438208", m.Device)
	_ = dev.Close()
	data, err := read(m.Device, 0, len(ones))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data[:off], ones[:off]) || !bytes.Equal(data[off+length:], ones[off+length:]) {
		t.Error("data outside the discarded range has changed")
	}
	if !bytes.Equal(data[off:off+length], make([]byte, length)) {
		t.Error("the discarded range is not zero")
	}
	if after := used(t, pool); after >= before {
		t.Errorf("used before %d, after the discard %d", before, after)
	}
	if err := write(m.Device, 0, ones[:4096]); err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "blkdiscard", "--zeroout", "-o", "0", "-l", "4096", m.Device)
	if data, err = read(m.Device, 0, 4096); err != nil || !bytes.Equal(data, make([]byte, 4096)) {
		t.Errorf("zeroed: %v, %v", data[:16], err)
	}
	if err := mapper.Unmap(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
}

func TestTheLoopDeviceHasDirectIOAndTheSizeOfTheImage(t *testing.T) {
	_, _, _, m, mapper := mapped(t, 24<<20)
	name := filepath.Base(m.Device)
	for file, want := range map[string]string{
		"/sys/block/" + name + "/loop/dio": "1", "/sys/block/" + name + "/loop/autoclear": "1", "/sys/block/" + name + "/size": "49152",
	} {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s: %q, %v; want %s", file, text, err, want)
		}
	}
	if err := mapper.Unmap(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
}

func TestADeadServerIsSeenAndReplaced(t *testing.T) {
	_, n, dir, m, mapper := mapped(t, 8<<20)
	if err := n.Write(m.Device, "before"); err != nil {
		t.Fatal(err)
	}
	testbed.KillServer(t, dir, m.ID)
	all, err := mapper.Mappings(t.Context())
	if err != nil || len(all) != 1 || all[0].Alive {
		t.Fatalf("mappings: %+v, %v", all, err)
	}
	if err := n.Write(m.Device, "after"); err == nil {
		t.Error("it was written without a server")
	}
	again, err := mapper.Map(t.Context(), backend.Image{Name: m.Name, ID: m.ID}, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if again.Addr == m.Addr || !again.Alive {
		t.Errorf("mapped again: %+v", again)
	}
	if text, err := n.Read(again.Device); err != nil || text != "before" {
		t.Errorf("read %q, %v", text, err)
	}
	if err := mapper.Unmap(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
}

func TestAStoppedServerHangsNobody(t *testing.T) {
	_, n, dir, m, mapper := mapped(t, 8<<20)
	resume := testbed.StopServer(t, dir, m.ID)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if all, err := n.Mapper().Mappings(ctx); err != nil || len(all) != 1 || !all[0].Alive {
		t.Errorf("mappings: %+v, %v", all, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := mapper.Unmap(short, m.ID); err == nil {
		t.Error("unmapped although its server does not answer")
	}
	if err := mapper.ForceUnmap(ctx, m.ID); err != nil {
		t.Errorf("drop: %v", err)
	}
	resume()
}

func TestNothingIsLeftWhenTheServerCannotStart(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	image := backendtest.Create(t, pool, "image", 8<<20)
	for name, m := range map[string]*fuse.Mapper{
		"no such program":   {Command: []string{"/nonexistent"}},
		"it says nothing":   {Command: []string{"/bin/true"}},
		"it says nonsense":  {Command: []string{"/bin/echo", "hello"}},
		"it never answers":  {Command: []string{"/bin/sleep", "60"}},
		"it is not allowed": {Command: nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, dir := node(t, cfg)
			m.Ceph, m.Dir, m.Log = cfg, dir, testbed.Log(t)
			if m.Command == nil {
				m.Command = n.Mapper().(*fuse.Mapper).Command
				m.Ceph.User = "client.missing"
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if got, err := m.Map(ctx, image, backend.ReadWrite); err == nil {
				t.Errorf("mapped: %+v", got)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %q", err)
			}
		})
	}
}

func TestWhatNeverCameUpIsSweptAway(t *testing.T) {
	cfg := testbed.Namespace(t)
	n, dir := node(t, cfg)
	if err := os.WriteFile(filepath.Join(dir, "abc.lock"), []byte("12345\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "abc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.Mapper().(*fuse.Mapper).Sweep(); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}
