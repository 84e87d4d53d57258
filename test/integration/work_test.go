package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// ext4 noted an error, and the cluster is slow: e2fsck takes longer than the request that
// it was started for. It goes on, tells how far it is, and is begun once.
func TestASlowCheckOutlivesItsRequest(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", map[string]string{"size": "8G", "mkfsOptions": "-O ^metadata_csum,^uninit_bg -N 4096"})
	put(t, one.mount("v"), "kept")
	one.unmount("v")
	h, err := one.pool.Open(t.Context(), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	image := h.Image()
	_ = h.Close(t.Context())
	byHand := &fuse.Mapper{Ceph: cfg, Dir: t.TempDir(), Command: testbed.ImageServer(t), Log: testbed.Log(t)}
	byHand.Ceph.Log = byHand.Log
	m, err := byHand.Map(t.Context(), image, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "debugfs", "-w", "-R", "set_super_value state 2", m.Device)
	if err := byHand.Unmap(t.Context(), image.ID); err != nil {
		t.Fatal(err)
	}
	place := cfg.Pool + "/" + cfg.Namespace
	testbed.RBD(t, "config", "image", "set", place+"/v", "rbd_qos_read_iops_limit", "12")

	_, err = one.Mount(one.context(3*time.Second), "v", "id")
	for errors.Is(err, backend.ErrUnavailable) || err != nil && strings.Contains(err.Error(), "no time left") { // it had not come as far on a busy machine
		_, err = one.Mount(one.context(10*time.Second), "v", "id")
	}
	if !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "checking its ext4") {
		t.Fatalf("got %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		v, err := one.Get(one.context(time.Minute), "v")
		if err != nil || time.Now().After(end) {
			t.Fatalf("no progress is told: %v, %v", v.Status, err)
		}
		if strings.Contains(fmt.Sprint(v.Status["work"]), " of 5, ") {
			break
		}
	}
	if _, err := one.Mount(one.context(time.Second), "v", "id"); err == nil || !strings.Contains(err.Error(), "for a request of before") {
		t.Errorf("the next mount: %v", err)
	}
	testbed.RBD(t, "config", "image", "rm", place+"/v", "rbd_qos_read_iops_limit")
	expect(t, one.mount("v"), "kept")
	if v, err := one.Get(one.context(time.Minute), "v"); err != nil || v.Status["work"] != nil {
		t.Errorf("%v, %v", v.Status, err)
	}
	one.unmount("v")
}
