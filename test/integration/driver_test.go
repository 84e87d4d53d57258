package integration

import (
	"crypto/sha256"
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
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

func TestAVolumeMovesBetweenNodes(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		one.create(fstype, map[string]string{"fstype": fstype, "size": "512M"})
		put(t, one.mount(fstype), "from one")
		_, err := two.Mount(two.context(time.Second), fstype, "id")
		if !errors.Is(err, backend.ErrInUse) || !strings.Contains(err.Error(), "by node one") {
			t.Errorf("the second node: %v", err)
		}
		one.unmount(fstype)
		expect(t, two.mount(fstype), "from one")
		two.unmount(fstype)
		if err := two.Remove(two.context(time.Minute), fstype); err != nil {
			t.Error(err)
		}
	}
	if left := records(t, cfg); left != "" {
		t.Errorf("records left: %s", left)
	}
}

func records(t *testing.T, cfg rbd.Config) string {
	t.Helper()
	var ours []string
	for object := range strings.Lines(testbed.Run(t, "rados", "-c", testbed.Conf(), "-p", cfg.Pool, "-N", cfg.Namespace, "ls")) {
		if strings.HasPrefix(object, "docker_volume.") && !strings.HasPrefix(object, "docker_volume.clock") {
			ours = append(ours, strings.TrimSpace(object))
		}
	}
	return strings.Join(ours, " ")
}

// The node's image server dies, as with a power cut, while the volume is
// mounted. Ceph's own default for its watch holds: 30 s.
func TestTakeOverFromADeadNode(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	one.create("v", nil)
	put(t, one.mount("v"), "safe")
	g, held := one.guard("v")
	if !held || g.Node != "one" || len(g.Addrs) != 1 {
		t.Fatalf("guard: %+v", g)
	}
	testbed.KillServer(t, one.dir, one.id("v"))
	start := time.Now()
	file := two.mount("v")
	t.Logf("taken over %.1f s after the death", time.Since(start).Seconds())
	expect(t, file, "safe")
	if until := testbed.BlocklistedUntil(t, g.Addrs[0]); time.Until(until) < 4*365*24*time.Hour {
		t.Errorf("the fence lasts until %v", until)
	}
	put(t, file, "two's")
	one.Reconcile(one.context(time.Minute)) // the returned node cleans up
	if path := one.Path(t.Context(), "v"); path != "" {
		t.Errorf("still mounted on %s", path)
	}
	two.unmount("v")
}

// A node that lives but was fenced, by an operator say: its mount can write
// nothing any more, and it takes it away by itself.
func TestAFencedNodeWritesNothingAndCleansUp(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	one.create("v", nil)
	file := one.mount("v")
	put(t, file, "safe")
	g, _ := one.guard("v")
	if err := two.pool.Fence(t.Context(), g.Addrs...); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	expect(t, two.mount("v"), "safe")
	t.Logf("taken over %.1f s after the fence", time.Since(start).Seconds())
	if err := tryPut(file, "corrupt"); err == nil {
		t.Error("the fenced node has written and synced")
	}
	one.Reconcile(one.context(time.Minute))
	if path := one.Path(t.Context(), "v"); path != "" {
		t.Errorf("still mounted on %s", path)
	}
	two.unmount("v")
	expect(t, one.mount("v"), "safe")
	one.unmount("v")
}

func TestAWatcherThatIsNotOursIsLeftAlone(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", nil)
	watch := exec.Command("rbd", "-c", testbed.Conf(), "watch", cfg.Pool+"/"+cfg.Namespace+"/v")
	stdin, err := watch.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	watching := func() bool {
		return strings.Contains(testbed.RBD(t, "status", cfg.Pool+"/"+cfg.Namespace+"/v"), "watcher=")
	}
	for end := time.Now().Add(time.Minute); !watching() && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	_, err = one.Mount(one.context(2*time.Second), "v", "id")
	if !errors.Is(err, backend.ErrInUse) || !strings.Contains(err.Error(), "no volume of this plugin") {
		t.Errorf("got %v", err)
	}
	if _, held := one.guard("v"); held {
		t.Error("the guard is left")
	}
	if err := one.Remove(one.context(10*time.Second), "v"); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("removed: %v", err)
	}
	if !watching() {
		t.Error("the watcher is gone")
	}
	_ = stdin.Close()
	_ = watch.Process.Kill()
	_ = watch.Wait()
}

// What was not made by us is mounted as it is or refused, and in no case
// changed by a bit.
func TestForeignContentIsNeverTouched(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	const size = 48 << 20
	for name, fill := range map[string]func(t *testing.T, file string){
		"empty":  func(*testing.T, string) {},
		"random": func(t *testing.T, f string) { testbed.Run(t, "dd", "if=/dev/urandom", "of="+f, "bs=1M", "count=48") },
		"luks": func(t *testing.T, f string) {
			testbed.Run(t, "sh", "-c", "echo secret | cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "+f+" -")
		},
		"partitions": func(t *testing.T, f string) { testbed.Run(t, "sh", "-c", "echo 2048,,L | sfdisk -q "+f) },
		"corrupt ext4": func(t *testing.T, f string) {
			testbed.Run(t, "mkfs.ext4", "-q", f)
			testbed.Run(t, "dd", "if=/dev/urandom", "of="+f, "bs=1k", "seek=1", "count=1", "conv=notrunc")
		},
		"swap": func(t *testing.T, f string) { testbed.Run(t, "mkswap", f) },
	} {
		t.Run(name, func(t *testing.T) {
			volume := strings.ReplaceAll(name, " ", "-")
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, size); err != nil {
				t.Fatal(err)
			}
			fill(t, file)
			image := cfg.Pool + "/" + cfg.Namespace + "/" + volume
			testbed.RBD(t, "import", "--no-progress", file, image)
			for range 2 {
				_, err := one.Mount(one.context(time.Minute), volume, "id")
				if !errors.Is(err, backend.ErrUnexpectedContent) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "not made by this plugin") {
					t.Errorf("got %v", err)
				}
			}
			back := filepath.Join(t.TempDir(), "back")
			testbed.RBD(t, "export", "--no-progress", image, back)
			if sum(t, back) != sum(t, file) {
				t.Error("the content has changed")
			}
			if _, held := one.guard(volume); held {
				t.Error("the guard is left")
			}
		})
	}
	t.Run("a filesystem of another plugin", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "image")
		testbed.Run(t, "truncate", "-s", "64M", file)
		testbed.Run(t, "mkfs.ext4", "-q", "-O", "mmp", file) // as wetopi's makes them
		image := cfg.Pool + "/" + cfg.Namespace + "/wetopi"
		testbed.RBD(t, "import", "--no-progress", "--image-feature", "layering", file, image)
		put(t, one.mount("wetopi"), "adopted")
		one.unmount("wetopi")
		expect(t, one.mount("wetopi"), "adopted")
		one.unmount("wetopi")
	})
}

func sum(t *testing.T, file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func TestADeviceThatCannotBeReadIsNotFormatted(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", nil)
	one.mount("v")
	v, err := one.Get(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	g, _ := one.guard("v")
	if err := one.pool.Fence(t.Context(), g.Addrs...); err != nil {
		t.Fatal(err)
	}
	one.guard("v") // which tells the OSD of the fence
	if _, err := (fsys.FS{}).Probe(t.Context(), v.Status["device"].(string)); !errors.Is(err, backend.ErrUnexpectedContent) {
		t.Errorf("probe: %v", err)
	}
}

func TestSpaceComesBackToThePool(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", map[string]string{"size": "256M"})
	file := one.mount("v")
	put(t, file, strings.Repeat("x", 64<<20))
	used := func() string {
		v, err := one.Get(t.Context(), "v")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(v.Status["used"])
	}
	full := used()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "sync", "-f", filepath.Dir(file)) // ext4 frees the blocks when the journal commits
	testbed.Run(t, "fstrim", filepath.Dir(file))
	if after := used(); after == full {
		t.Errorf("used %s before and %s after fstrim", full, after)
	}
	one.unmount("v")
}

// A mount with a process in it, outside any container, keeps the volume.
func TestAMountPointInUseIsNotUnmounted(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", nil)
	file := one.mount("v")
	open, err := unix.Open(filepath.Dir(file), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	one.unmount("v") // Docker is not told: there is nothing that it could do
	if path := one.Path(t.Context(), "v"); path == "" {
		t.Error("unmounted")
	}
	if _, held := one.guard("v"); !held {
		t.Error("the guard was given back")
	}
	_ = unix.Close(open)
	one.Reconcile(one.context(time.Minute))
	if path := one.Path(t.Context(), "v"); path != "" {
		t.Errorf("still mounted on %s", path)
	}
}
