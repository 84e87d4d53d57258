package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// A small object of a written volume is lost, which Ceph's own tools do not mend.
func TestALostNameIsMended(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", nil)
	put(t, one.mount("v"), "kept")
	one.unmount("v")
	id := one.id("v")
	testbed.Run(t, "rados", "-c", testbed.Conf(), "-p", cfg.Pool, "-N", cfg.Namespace, "rm", "rbd_id.v")
	one.create("v", nil)
	if one.id("v") != id {
		t.Error("another was made")
	}
	expect(t, one.mount("v"), "kept")
	one.unmount("v")
}

// The object map of an image is what librbd makes last of it.
func TestAnImageWithoutObjectMapIsMadeAnew(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	for _, again := range []bool{true, false} {
		one.create("v", nil)
		id := one.id("v")
		testbed.Run(t, "rados", "-c", testbed.Conf(), "-p", cfg.Pool, "-N", cfg.Namespace, "rm", "rbd_object_map."+id)
		if again {
			one.create("v", nil)
		}
		put(t, one.mount("v"), "new")
		if one.id("v") == id {
			t.Error("it is the same")
		}
		one.unmount("v")
		if err := one.Remove(one.context(time.Minute), "v"); err != nil {
			t.Fatal(err)
		}
	}
}

// The plugin is killed at any moment of the calls in which librbd makes a copy, or removes
// one. Created again a copy has what it is to have, also when its snapshot is gone; removed
// again it is gone, and its name is free. A night does it more often (MODEL=long).
func TestKilledAtAnyMomentOfACopy(t *testing.T) {
	testbed.WatchTimeout(t, 10)
	cfg := testbed.Namespace(t)
	one := newPlugin(t, cfg, "one")
	file := func(volume string) string { return filepath.Join(one.root, "volumes", volume, "file") }
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	killed := func(method string, request map[string]any) {
		t.Helper()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = one.call("VolumeDriver."+method, request)
		}()
		time.Sleep(time.Duration(random.IntN(80)) * time.Millisecond)
		one.stop(unix.SIGKILL)
		<-done
		one.start()
	}
	one.must("Create", map[string]any{"Name": "v"})
	one.must("Mount", map[string]any{"Name": "v", "ID": "1"})
	put(t, file("v"), "of the original")
	one.must("Unmount", map[string]any{"Name": "v", "ID": "1"})
	at := cfg.Pool + "/" + cfg.Namespace + "/"
	testbed.RBD(t, "snap", "create", at+"v@s")
	copies := 4
	if os.Getenv("MODEL") == "long" {
		copies = 60
	}
	for i := range copies {
		from := []string{"v@s", "v"}[i%2]
		create := map[string]any{"Name": fmt.Sprintf("w%d", i), "Opts": map[string]any{"from": from}}
		killed("Create", create)
		one.must("Create", create)
	}
	snaps := strings.Fields(testbed.Run(t, "sh", "-c", "rbd -c "+testbed.Conf()+" snap ls --format json "+at+`v | grep -o '"name":"[^"]*"' | cut -d'"' -f4`))
	for _, snap := range snaps {
		testbed.RBD(t, "snap", "rm", "--no-progress", at+"v@"+snap)
	}
	for i := range copies {
		volume := fmt.Sprintf("w%d", i)
		one.must("Mount", map[string]any{"Name": volume, "ID": "1"})
		expect(t, file(volume), "of the original")
		one.must("Unmount", map[string]any{"Name": volume, "ID": "1"})
		killed("Remove", map[string]any{"Name": volume})
		one.must("Remove", map[string]any{"Name": volume})
		one.must("Create", map[string]any{"Name": volume})
		one.must("Mount", map[string]any{"Name": volume, "ID": "1"})
		if _, err := os.Stat(file(volume)); err == nil {
			t.Errorf("%s is not new", volume)
		}
		one.must("Unmount", map[string]any{"Name": volume, "ID": "1"})
		one.must("Remove", map[string]any{"Name": volume})
	}
	log, err := os.ReadFile(one.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("figure: of %d copies %d were made anew, and %d names made free", copies,
		strings.Count(string(log), "it is made anew"), strings.Count(string(log), "it is made free"))
}
