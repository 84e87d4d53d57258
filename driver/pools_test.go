package driver_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/faults"
)

// twoPlaces is a plugin with the pools rbd and ssd, the tap on the first and the client
// of the second.
func twoPlaces(t *testing.T) (driver.Pools, *tap, *memory.Client) {
	var places driver.Pools
	var taps []*tap
	c := memory.NewCluster()
	for _, pool := range []*memory.Cluster{c, c.Beside(backend.PoolSpec{Pool: "ssd"})} {
		p := &tap{ceph: ceph{pool.Connect("10.0.0.1")}}
		taps = append(taps, p)
		log := logrus.New()
		log.SetOutput(&safeBuffer{})
		place := backend.PoolSpec{Pool: "rbd"}
		if len(places) > 0 {
			place.Pool = "ssd"
		}
		host := memory.NewHost(pool, "10.0.0.1")
		d, err := driver.New(faults.Wrap(driver.Config{
			Images: p.ceph, Records: p.ceph, Fences: p.ceph, Secrets: p.ceph, Mapper: host, Filesystem: host,
			Node: guard.Node{Name: "one", Boot: "boot", Hosts: func() ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
			}},
			BreakLock: true, Pool: place, Root: t.TempDir(), Log: log, Poll: time.Millisecond, Patience: 200 * time.Millisecond,
		}, p.step))
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, d)
	}
	return places, taps[0], taps[1].Client
}

// One pool is away: the volumes of the other are as ever, what is known of its own is
// told from the cache, and nothing is called missing that may be there.
func TestOnePlaceIsAway(t *testing.T) {
	places, _, ssd := twoPlaces(t)
	ctx := within(t, ever)
	for name, pool := range map[string]string{"a": "", "b": "ssd"} {
		if err := places.Create(ctx, name, map[string]string{"pool": pool}); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := places.Get(ctx, "b"); err != nil || v.Status["pool"] != "ssd" {
		t.Errorf("%v, %v", v, err)
	}
	if err := ssd.Fence(ctx, ssd.Addr()); err != nil {
		t.Fatal(err)
	}
	if v, err := places.Get(ctx, "a"); err != nil || v.Status["ceph"] != nil {
		t.Errorf("the volume of the pool that answers: %v, %v", v.Status, err)
	}
	if v, err := places.Get(ctx, "b"); err != nil || v.Status["pool"] != "ssd" || v.Status["ceph"] == nil {
		t.Errorf("the volume of the other pool: %v, %v", v.Status, err)
	}
	_, err := places.Get(ctx, "c")
	check(t, err, backend.ErrUnavailable)
	if errors.Is(err, backend.ErrNotFound) {
		t.Errorf("called missing: %v", err)
	}
	check(t, places.Create(ctx, "c", nil), backend.ErrUnavailable, "create volume c: ")
	check(t, places.Remove(ctx, "b"), backend.ErrUnavailable)
	if _, err := places.Mount(ctx, "a", "1"); err != nil {
		t.Error(err)
	}
	if err := places.Unmount(ctx, "a", "1"); err != nil || places.InUse(ctx) {
		t.Errorf("unmount: %v, in use %v", err, places.InUse(ctx))
	}
	_, err = places.Mount(ctx, "b", "1")
	check(t, err, backend.ErrUnavailable)
	list, err := places.List(ctx)
	if names := []string{list[0].Name, list[1].Name}; err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("list: %v, %v", names, err)
	}
}

func TestFencingANodeInTwoPlaces(t *testing.T) {
	places, rbd, ssd := twoPlaces(t)
	ctx := within(t, ever)
	_, err := places.FenceNode(ctx, "dead", "")
	check(t, err, backend.ErrNotFound, "fence node dead")
	_, err = places.FenceNode(ctx, "one", "")
	check(t, err, backend.ErrInvalid, "one is this very node")
	// Two machines of a name, one in each place.
	first, second := newNode(t, rbd.Client.Cluster(), "two", "10.0.0.2"), newNode(t, ssd.Cluster(), "two", "10.0.0.3")
	for volume, n := range map[string]*node{"v": first, "w": second} {
		n.create(volume, nil)
		n.mount(volume, "1")
	}
	_, err = places.FenceNode(ctx, "two", "")
	check(t, err, backend.ErrInvalid, "10.0.0.2 and 10.0.0.3")
	taken, err := places.FenceNode(ctx, "two", "10.0.0.3")
	if err != nil || len(taken) != 1 || taken[0].Volume != "w" {
		t.Errorf("%+v, %v", taken, err)
	}
}

// Two nodes make a volume at the same time, each in another place.
func TestANameThatIsTakenElsewhereMeanwhile(t *testing.T) {
	places, rbd, ssd := twoPlaces(t)
	ctx := within(t, ever)
	rbd.on(func(call string) error {
		if call == "Images.Create" {
			return ssd.Create(ctx, backend.ImageSpec{Name: "v", Size: 1 << 30})
		}
		return nil
	})
	check(t, places.Create(ctx, "v", nil), backend.ErrAmbiguous, "create volume v: ", "rbd/v and ssd/v", "rbd rename")
	_, err := places.Mount(ctx, "v", "1")
	check(t, err, backend.ErrAmbiguous, "mount volume v: ")
	check(t, places.Create(ctx, "w", map[string]string{"from": "v"}), backend.ErrAmbiguous)
}
