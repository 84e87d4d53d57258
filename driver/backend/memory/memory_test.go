package memory

import (
	"fmt"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

func TestContracts(t *testing.T) {
	t.Run("Images", func(t *testing.T) {
		backendtest.Images(t, func(*testing.T) backendtest.Ceph { return NewCluster().Connect("10.0.0.1") })
	})
	t.Run("Records", func(t *testing.T) {
		c := NewCluster()
		backendtest.Records(t, func(*testing.T) backendtest.Ceph { return c.Connect("10.0.0.1") })
	})
	t.Run("Fences", func(t *testing.T) {
		c := NewCluster()
		backendtest.Fences(t, func(*testing.T) backendtest.Ceph { return c.Connect("10.0.0.1") })
	})
	t.Run("Snapshots", func(t *testing.T) {
		backendtest.Snapshots(t, func(*testing.T) (backendtest.Ceph, backend.PoolSpec) {
			c := NewCluster()
			return c.Connect("10.0.0.1"), c.spec
		})
	})
	t.Run("Encrypted", func(t *testing.T) {
		c := NewCluster()
		backendtest.Encrypted(t, c.Connect("10.0.0.1"), node(c, "10.0.0.1"), node(c, "10.0.0.2"), "luks1", "luks2")
	})
	t.Run("Mapper", func(t *testing.T) {
		c := NewCluster()
		backendtest.Mapper(t, c.Connect("10.0.0.1"), func(_ *testing.T, image, name string) { c.Snapshot(image, name) },
			node(c, "10.0.0.1"), node(c, "10.0.0.2"))
	})
	t.Run("Filesystem", func(t *testing.T) {
		c := NewCluster()
		client, host := c.Connect("10.0.0.1"), NewHost(c, "10.0.0.1")
		n := 0
		backendtest.Filesystem(t, host, backendtest.Devices{
			Dir: "/mnt",
			New: func(t *testing.T, size uint64) string {
				n++
				m, err := host.Map(t.Context(), backendtest.Create(t, client, fmt.Sprintf("i%d", n), size), backend.ReadWrite)
				if err != nil {
					t.Fatal(err)
				}
				return m.Device
			},
			Larger: func(_ *testing.T, device string, size uint64) {
				d := host.byDevice(device)
				c.Resize(d.image.Name, size)
				if _, err := host.Size(t.Context(), d.Mapping); err != nil {
					t.Fatal(err)
				}
			},
			Hold: func(t *testing.T, path string) func() {
				release, err := host.Hold(path)
				if err != nil {
					t.Fatal(err)
				}
				return release
			},
			Use: func(t *testing.T, path string) func() {
				release, err := host.Hold(path)
				if err != nil {
					t.Fatal(err)
				}
				return release
			},
		})
	})
}

func node(c *Cluster, ip string) backendtest.Node {
	host := NewHost(c, ip)
	return backendtest.Node{
		Mapper: func() backend.Mapper { return host },
		Hold: func(t *testing.T, name string) func() {
			host.mu.Lock()
			defer host.mu.Unlock()
			d := host.byDevice(name)
			if d == nil {
				t.Fatalf("no device %s", name)
			}
			d.held++
			return func() { d.held-- }
		},
		Write: host.Write,
		Read:  host.Read,
	}
}
