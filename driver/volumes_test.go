package driver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

func TestTheLifeOfAVolume(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", map[string]string{"size": "1G", "fstype": "xfs"})
	one.create("v", map[string]string{"size": "1G"}) // Docker repeats itself
	v, err := two.Get(within(t, ever), "v")
	if err != nil {
		t.Fatal(err)
	}
	if v.Status["filesystem"] != "xfs (made at the first mount)" || v.Status["size"] != "1GiB" || v.Mountpoint != "" || v.Status["node"] != nil {
		t.Errorf("before the first mount: %+v", v)
	}
	one.mount("v", "1")
	v, err = two.Get(within(t, ever), "v")
	if err != nil {
		t.Fatal(err)
	}
	if v.Status["filesystem"] != "xfs" || v.Status["node"] != "one" || v.Mountpoint != "" {
		t.Errorf("mounted on another node: %+v", v)
	}
	v, err = one.Get(within(t, ever), "v")
	if err != nil {
		t.Fatal(err)
	}
	if v.Mountpoint != one.path("v") || v.Status["device"] != one.device("v") {
		t.Errorf("mounted here: %+v", v)
	}
	check(t, one.Driver.Remove(within(t, ever), "v"), backend.ErrBusy, "1 containers", "one")
	one.unmount("v", "1")
	if err := two.Driver.Remove(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	if err := one.Driver.Remove(within(t, ever), "v"); err != nil {
		t.Errorf("removed on another node: %v", err)
	}
	_, err = one.Get(within(t, ever), "v")
	check(t, err, backend.ErrNotFound)
	// Its name is free, and nothing of it is left to be taken for the new one.
	one.create("v", nil)
	one.mount("v", "1")
	one.holds("v", "ext4")
}

func TestManyContainersShareAMount(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "a")
	device := one.device("v")
	one.mount("v", "b")
	one.mount("v", "a") // docker cp into the running container a
	one.unmount("v", "a")
	one.unmount("v", "b")
	if one.device("v") != device {
		t.Fatal("unmapped under container a")
	}
	one.unmount("v", "a")
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	one.unmount("v", "a")
}

func TestCreateOfOneNameAtOnce(t *testing.T) {
	_, one, two := twoNodes(t)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, n := range []*node{one, two} {
		wg.Go(func() { errs[i] = n.Create(within(t, ever), "same", map[string]string{"size": "1G"}) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error("two that agree:", err)
	}
	for i, n := range []*node{one, two} {
		size := fmt.Sprintf("%dG", i+1)
		wg.Go(func() {
			errs[i] = n.Create(within(t, ever), "differ", map[string]string{"size": size, "fstype": "ext4"})
		})
	}
	wg.Wait()
	if errs[0] != nil && errs[1] != nil || errs[0] == nil && errs[1] == nil {
		t.Fatalf("two that differ: %v, %v", errs[0], errs[1])
	}
	for _, err := range errs {
		if err != nil {
			check(t, err, backend.ErrExists, "size", "asked for")
		}
	}
}

func TestAnExistingVolumeThatDiffersIsRefused(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", map[string]string{"size": "1G"})
	check(t, one.Create(within(t, ever), "v", map[string]string{"size": "2G"}), backend.ErrExists, "create volume v", "size", "1GiB", "2G")
	check(t, one.Create(within(t, ever), "v", map[string]string{"fstype": "xfs"}), backend.ErrExists, "fstype", "ext4", "xfs")
	one.create("v", nil)
}

// foreign makes an image that this plugin knows nothing of.
func foreign(t *testing.T, c *memory.Cluster, name, content string) {
	t.Helper()
	client, host := c.Connect("10.0.0.7"), memory.NewHost(c, "10.0.0.7")
	ctx := within(t, ever)
	if err := client.Create(ctx, backend.ImageSpec{Name: name, Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	h, err := client.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	m, err := host.Map(ctx, h.Image(), backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if content != "" {
		if err := host.Write(m.Device, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.Unmap(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
}

func TestImagesOfOthersAreMountedAsTheyAreAndNeverFormatted(t *testing.T) {
	c, one, _ := twoNodes(t)
	foreign(t, c, "wetopi", "ext4 of another plugin")
	one.mount("wetopi", "1")
	one.holds("wetopi", "ext4 of another plugin")
	one.unmount("wetopi", "1")
	for name, content := range map[string]string{"empty": "", "luks": "crypto_LUKS", "table": "gpt"} {
		foreign(t, c, name, content)
		one.refused(name, "1", backend.ErrUnexpectedContent, "not made by this plugin")
		if d := one.device(name); d != "" {
			t.Errorf("%s is still mapped as %s", name, d)
		}
		if _, _, held := one.guard(name); held {
			t.Errorf("the guard of %s is left", name)
		}
	}
}

func TestAVolumeWithoutTheDirectoryThatIsWantedIsLetGo(t *testing.T) {
	for _, readOnly := range []string{"false", "true"} {
		c, one, two := twoNodes(t)
		foreign(t, c, "theirs", "ext4")
		note := func(directory string) {
			h, err := c.Connect("10.0.0.8").Open(within(t, ever), "theirs", backend.ReadWrite)
			if err == nil {
				err = h.SetMeta(within(t, ever), map[string]string{"subdirectory": directory, "readonly": readOnly})
			}
			if err == nil {
				err = h.Close(within(t, ever))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		note("missing")
		for range 2 {
			_, err := one.Driver.Mount(within(t, ever), "theirs", "1")
			check(t, err, backend.ErrUnexpectedContent, "mount volume theirs: ", "no directory missing")
			if _, mounted := one.mountOf("theirs"); mounted || one.device("theirs") != "" {
				t.Fatalf("readonly=%s: it stays mounted", readOnly)
			}
		}
		note("data")
		path, err := two.Driver.Mount(within(t, soon), "theirs", "1") // nobody has it
		if err != nil || path != two.path("theirs")+"/data" {
			t.Fatalf("readonly=%s: %q, %v", readOnly, path, err)
		}
		// Beside a container that has it, a mistake is one of the next container's.
		note("missing")
		if _, err := two.Get(within(t, ever), "theirs"); err != nil {
			t.Fatal(err)
		}
		_, err = two.Driver.Mount(within(t, ever), "theirs", "2")
		check(t, err, backend.ErrUnexpectedContent, "no directory missing")
		if _, mounted := two.mountOf("theirs"); !mounted {
			t.Fatalf("readonly=%s: taken from the container that has it", readOnly)
		}
	}
}

func TestABlankVolumeThatHoldsDataIsNotFormatted(t *testing.T) {
	c, one, _ := twoNodes(t)
	one.create("v", nil)
	host := memory.NewHost(c, "10.0.0.7") // rbd map, dd, rbd unmap by hand
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	m, err := host.Map(within(t, ever), h.Image(), backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Write(m.Device, "restored from a backup"); err != nil {
		t.Fatal(err)
	}
	if err := host.Unmap(within(t, ever), m.ID); err != nil {
		t.Fatal(err)
	}
	one.refused("v", "1", backend.ErrUnexpectedContent, "it is not formatted", "rbd image-meta set rbd/v")
	one.refused("v", "1", backend.ErrUnexpectedContent)
	m, err = host.Map(within(t, ever), h.Image(), backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := host.Read(m.Device); got != "restored from a backup" {
		t.Errorf("it holds %q", got)
	}
}

// A format was begun on an image that was then replaced by hand under its name.
func TestAnImageThatReplacedABegunOneIsNotFormatted(t *testing.T) {
	c, one, _ := twoNodes(t)
	one.create("v", map[string]string{"mkfsOptions": "--refused"})
	if _, err := one.Driver.Mount(within(t, ever), "v", "1"); err == nil {
		t.Fatal("mounted")
	}
	h, err := one.client.Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(within(t, ever), 0); err != nil {
		t.Fatal(err)
	}
	foreign(t, c, "v", "restored from a backup")
	one.refused("v", "1", backend.ErrUnexpectedContent, "it is not formatted")
}

func TestARefusedMkfsOptionCanBeMended(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", map[string]string{"mkfsOptions": "--refused"})
	_, err := one.Driver.Mount(within(t, ever), "v", "1")
	if err == nil {
		t.Fatal("mounted")
	}
	check(t, err, err, "mount volume v", "mkfs.ext4: unknown option", "remove the volume")
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	if err := one.Driver.Remove(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	one.create("v", nil)
	one.mount("v", "1")
}

func TestBadInputReachesNobody(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.tap.on(func(call string) error {
		t.Errorf("it came as far as %s", call)
		return nil
	})
	ctx := within(t, ever)
	for name, opts := range map[string]map[string]string{
		"v": {"sise": "1G"}, "w": {"size": "huge"}, "x": {"fstype": "xfs", "size": "10M"}, "../etc": nil, "": nil,
	} {
		check(t, one.Create(ctx, name, opts), backend.ErrInvalid, "create")
	}
	_, err := one.Driver.Mount(ctx, "a/b", "1")
	check(t, err, backend.ErrInvalid)
	check(t, one.Driver.Unmount(ctx, "a/b", "1"), backend.ErrInvalid)
	check(t, one.Driver.Remove(ctx, "a/b"), backend.ErrInvalid)
}

func TestWhileCephIsAwayTheRecordAnswers(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.create("w", nil)
	if _, err := one.Get(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	away := func(string) error { return fmt.Errorf("%w: no answer", backend.ErrUnavailable) }
	one.restart() // also after a restart: the cache is on disk
	one.tap.on(func(call string) error {
		switch call {
		case "Mapper.Mappings", "Filesystem.Mounted":
			return nil
		}
		return away(call)
	})
	v, err := one.Get(within(t, ever), "v")
	if err != nil || v.Created.IsZero() || v.Status["ceph"] == nil {
		t.Errorf("get: %+v, %v", v, err)
	}
	_, err = one.Get(within(t, ever), "unknown")
	check(t, err, backend.ErrUnavailable)
	if errors.Is(err, backend.ErrNotFound) {
		t.Error("a volume that nobody could ask for was called missing")
	}
	all, err := one.List(within(t, ever))
	if names := namesOf(all); err != nil || !slices.Equal(names, []string{"v", "w"}) {
		t.Errorf("list: %v, %v", names, err)
	}
	_, err = one.Driver.Mount(within(t, ever), "v", "1")
	check(t, err, backend.ErrUnavailable)
	one.tap.on(nil)
	one.mount("v", "1")
	one.answers("v")
}

// answers waits until Get is answered by Ceph again.
func (n *node) answers(volume string) {
	n.t.Helper()
	for end := time.Now().Add(ever); ; time.Sleep(time.Millisecond) {
		v, err := n.Get(within(n.t, ever), volume)
		if err == nil && v.Status["ceph"] == nil {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("get: %+v, %v", v, err)
		}
	}
}

// dockerd asks for all its volumes, one after the other, when it starts.
func TestOnlyTheFirstQuestionWaitsForACephThatIsAway(t *testing.T) {
	synctest.Test(t, testOnlyTheFirstQuestionWaitsForACephThatIsAway)
}

func testOnlyTheFirstQuestionWaitsForACephThatIsAway(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	var asked atomic.Int64
	hangs := func(call string) error {
		switch call {
		case "Mapper.Mappings", "Filesystem.Mounted":
			return nil
		}
		asked.Add(1)
		time.Sleep(220 * time.Millisecond) // longer than the patience
		return backend.ErrUnavailable
	}
	one.tap.on(hangs)
	for range 300 {
		if v, err := one.Get(within(t, ever), "v"); err != nil || !strings.Contains(fmt.Sprint(v.Status["ceph"]), "cannot be asked") {
			t.Fatalf("known: %+v, %v", v, err)
		}
		if _, err := one.List(within(t, ever)); err != nil {
			t.Fatal(err)
		}
		if _, err := one.Get(within(t, ever), "unknown"); !errors.Is(err, backend.ErrUnavailable) || errors.Is(err, backend.ErrNotFound) {
			t.Fatalf("unknown: %v", err)
		}
	}
	if n := asked.Load(); n > 30 {
		t.Errorf("ceph was asked %d times", n)
	}
	one.tap.on(nil)
	one.answers("v")
	if log := one.log.String(); strings.Count(log, "ceph does not answer") != 1 || strings.Count(log, "ceph answers again") != 1 {
		t.Errorf("the log:\n%s", log)
	}
}

// Docker answers nobody when it starts until it has tried each container that has --restart.
func TestAMountInAnOutageAsksOneShortQuestion(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	var asked sync.Map
	one.tap.on(func(call string) error {
		switch call {
		case "Mapper.Mappings", "Filesystem.Mounted":
			return nil
		}
		asked.Store(call, true)
		return backend.ErrUnavailable
	})
	if _, err := one.Get(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	_, err := one.Driver.Mount(within(t, ever), "v", "1")
	check(t, err, backend.ErrUnavailable)
	if _, asked := asked.Load("Images.Exists"); !asked {
		t.Error("no short question was asked")
	}
	asked.Range(func(call, _ any) bool {
		if call != "Images.Exists" && call != "Images.Open" && call != "Images.Ping" { // ping: what ends the outage
			t.Errorf("ceph was asked for %v", call)
		}
		return true
	})
	one.tap.on(nil)
	one.mount("v", "1")
}

// What is found out about Ceph when the plugin starts is found out once: until
// then the cache answers, and a mount asks one short question.
func TestAStartInAnOutage(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error // of all other questions
	}{{"a part answers late", nil}, {"ceph is away", backend.ErrUnavailable}} {
		t.Run(c.name, func(t *testing.T) {
			_, one, _ := twoNodes(t)
			one.create("v", nil)
			asked, answer := make(chan struct{}), make(chan struct{})
			reply := sync.OnceFunc(func() { close(answer) })
			defer reply()
			var once sync.Once
			one.tap.on(func(call string) error {
				switch call {
				case "Mapper.Mappings", "Filesystem.Mounted":
					return nil
				case "Images.Names":
					once.Do(func() { close(asked) })
					<-answer
				case "Images.Open":
					if c.err != nil {
						t.Error("ceph was asked for more than the short question")
					}
				}
				return c.err
			})
			ctx, stop := context.WithCancel(within(t, ever))
			watched := make(chan struct{})
			go func() {
				defer close(watched)
				one.Watch(ctx, ever)
			}()
			<-asked
			v, err := one.Get(ctx, "v")
			if err != nil || !strings.Contains(fmt.Sprint(v.Status["ceph"]), "just started") {
				t.Errorf("%+v, %v", v, err)
			}
			if _, err := one.Driver.Mount(ctx, "v", "1"); !errors.Is(err, c.err) {
				t.Errorf("mount: %v, not %v", err, c.err)
			}
			one.tap.on(nil)
			reply()
			one.answers("v")
			one.mount("v", "2")
			stop()
			<-watched
		})
	}
}

func namesOf(volumes []driver.Volume) (names []string) {
	for _, v := range volumes {
		names = append(names, v.Name)
	}
	return names
}

func TestAVolumeThatHangsDelaysNoOther(t *testing.T) {
	synctest.Test(t, testAVolumeThatHangsDelaysNoOther)
}

func testAVolumeThatHangsDelaysNoOther(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("stuck", nil)
	one.create("v", nil)
	hang, stuck := make(chan struct{}), make(chan struct{})
	var once sync.Once
	one.tap.on(func(call string) error {
		if call == "Mapper.Map" {
			first := false
			once.Do(func() { first = true })
			if first {
				close(stuck)
				<-hang
			}
		}
		return nil
	})
	done := make(chan error)
	go func() {
		_, err := one.Driver.Mount(within(t, ever), "stuck", "1")
		done <- err
	}()
	<-stuck
	one.mount("v", "1")
	all, err := one.List(within(t, ever))
	if err != nil || len(all) != 2 {
		t.Errorf("list: %v, %v", all, err)
	}
	if _, err := one.Get(within(t, ever), "stuck"); err != nil {
		t.Error(err)
	}
	check(t, one.Driver.Unmount(within(t, soon), "stuck", "2"), backend.ErrBusy, "another mount")
	one.Reconcile(within(t, soon))
	close(hang)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAMountThatDockerGaveUpIsUndone(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	ctx, hangUp := context.WithCancel(context.Background())
	one.tap.on(func(call string) error {
		if call == "Filesystem.Format" {
			hangUp()
			return ctx.Err()
		}
		return nil
	})
	if _, err := one.Driver.Mount(ctx, "v", "1"); err == nil {
		t.Fatal("mounted")
	}
	eventually(t, "nothing is mapped", func() bool { return one.device("v") == "" }) // mkfs may go on for a moment
	two.mount("v", "2")
}

func TestMountOptions(t *testing.T) {
	c := memory.NewCluster()
	for name, want := range map[string]string{
		"plain ext4": "noatime,errors=remount-ro", "plain xfs": "noatime,nouuid", "own": "discard,errors=remount-ro",
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, c, "one", "10.0.0.1")
			opts := map[string]map[string]string{
				"plain ext4": nil, "plain xfs": {"fstype": "xfs"}, "own": {"mountOptions": "-o discard"},
			}[name]
			volume := fmt.Sprintf("v%d", len(name))
			n.create(volume, mapsWith(opts, "size", "1G"))
			n.mount(volume, "1")
			if m, _ := n.mountOf(volume); m.Options != want {
				t.Errorf("mounted with %q, want %q", m.Options, want)
			}
			n.unmount(volume, "1")
			n.mount(volume, "2") // what Create was told is in Ceph
			if m, _ := n.mountOf(volume); m.Options != want {
				t.Errorf("mounted again with %q, want %q", m.Options, want)
			}
		})
	}
}

func mapsWith(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func TestLetGoAtTheEndOfThePlugin(t *testing.T) { inVirtualTime(t, testLetGoAtTheEndOfThePlugin) }

func testLetGoAtTheEndOfThePlugin(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("free", nil)
	one.create("held", nil)
	one.mount("free", "1")
	one.mount("held", "1")
	release, err := one.Host.Hold(one.path("held"))
	if err != nil {
		t.Fatal(err)
	}
	one.Shutdown(within(t, ever))
	two.mount("free", "2")
	two.refused("held", "2", backend.ErrInUse, "node one")
	if err := one.write("held", "ext4 data"); err != nil {
		t.Error(err)
	}
	release()
}

// What is not found on the way to a removal is not the volume: it is still there, and
// nobody is told that it has gone.
func TestWhatIsNotFoundDuringARemovalIsNotTheVolume(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call == "Handle.Meta" {
			return backend.ErrNotFound
		}
		return nil
	})
	err := one.Driver.Remove(within(t, ever), "v")
	one.tap.on(nil)
	if err == nil {
		t.Error("it was called removed")
	}
	if _, err := one.Get(within(t, ever), "v"); err != nil {
		t.Error(err)
	}
}
