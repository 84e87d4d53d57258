package fuse_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// A key is rotated while an image is mapped: what is mapped goes on, what is mapped
// from then on needs the new one, and finds it where the keyring is.
func TestAnImageIsMappedWithARotatedKey(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	one, two := backendtest.Create(t, pool, "one", 8<<20), backendtest.Create(t, pool, "two", 8<<20)
	const user = "client.rotates"
	defer testbed.Ceph(t, "auth", "rm", user)
	cfg.User, cfg.Keyring = user, testbed.User(t, user, "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
	n, _ := node(t, cfg)
	m := n.Mapper()
	first, err := m.Map(t.Context(), one, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	before := testbed.Ceph(t, "auth", "get-key", user)
	after := testbed.Run(t, "ceph-authtool", "--gen-print-key")
	rotate := func(path string) {
		text := testbed.Ceph(t, "auth", "get", user)
		if err := os.WriteFile(path, []byte(strings.Replace(text, strings.TrimSpace(before), strings.TrimSpace(after), 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	imported := filepath.Join(t.TempDir(), "keyring")
	rotate(imported)
	testbed.Ceph(t, "auth", "import", "-i", imported)
	if _, err := m.Map(t.Context(), two, backend.ReadWrite); err == nil || !strings.Contains(err.Error(), "ret=-13") {
		t.Errorf("mapped with the key of before: %v", err)
	}
	if err := os.Rename(imported, cfg.Keyring); err != nil {
		t.Fatal(err)
	}
	second, err := m.Map(t.Context(), two, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	for _, mapping := range []backend.Mapping{first, second} {
		if err := n.Write(mapping.Device, "written"); err != nil {
			t.Errorf("%s: %v", mapping.Name, err)
		}
		if err := m.Unmap(t.Context(), mapping.ID); err != nil {
			t.Error(err)
		}
	}
}
