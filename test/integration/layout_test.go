package integration

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// A key that reaches no further than its namespace is enough for all that a volume
// can be there, and for nothing beside it.
func TestAKeyOfOneNamespace(t *testing.T) {
	t.Parallel()
	cfg, other := testbed.Namespace(t), testbed.Namespace(t)
	cap := "profile rbd pool=rbd namespace=" + cfg.Namespace
	cfg.User = "client." + cfg.Namespace
	cfg.Keyring = testbed.User(t, cfg.User, "mon", "profile rbd", "osd", cap, "mgr", cap)
	one, two := newNode(t, cfg, "one"), keepsTrash(t, cfg, "two", time.Second)
	one.create("v", nil)
	put(t, one.mount("v"), "here")
	one.create("copy", map[string]string{"from": "v"})
	expect(t, two.mount("copy"), "here")
	if frozen, err := one.CreateSnapshot(t.Context(), "v", "s"); err != nil || !frozen {
		t.Errorf("snapshot: %v, %v", frozen, err)
	}
	one.create("look", map[string]string{"snapshot": "v@s"})
	expect(t, two.mount("look"), "here")
	for _, name := range []string{"copy", "look"} {
		two.unmount(name)
		if err := two.Remove(two.context(time.Minute), name); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(2 * time.Second)
	two.Driver.Purge(t.Context())
	one.unmount("v")
	cfg.Namespace = other.Namespace
	err := newNode(t, cfg, "lost").Create(one.context(time.Minute), "v", nil)
	if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "ceph refuses this key") {
		t.Errorf("in another namespace: %v", err)
	}
	err = one.Create(one.context(time.Minute), "secret", map[string]string{"encryption": "luks2", "passphrase": "ceph:x"})
	if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "this user may not read it") {
		t.Errorf("a passphrase without the cap: %v", err)
	}
}
