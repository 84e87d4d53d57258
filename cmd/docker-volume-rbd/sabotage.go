//go:build sabotage

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/faults"
)

// sabotaged has a hole in its protection, for test/swarm: whoever looks for
// corruption must find it then. Or a step of it goes wrong: see test/faults. No
// plugin that is installed is built like this.
func sabotaged(c driver.Config, p *rbd.Pool, cfg rbd.Config) (driver.Config, error) {
	switch hole := os.Getenv("SABOTAGE"); hole {
	case "":
	case "guard":
		c.Images, c.Records = blind{p}, &forgetful{Pool: p, guards: map[string]kept{}}
	case "fence":
		c.Fences = harmless{p}
	case "brief":
		c.Fences = brief{p, cfg}
	default:
		if err := takeOut(hole, &c, p, cfg); err != nil {
			return c, err
		}
	}
	layer, err := faults.FromEnvironment(os.Getenv)
	if err != nil {
		return c, err
	}
	return faults.Wrap(c, layer.Step), nil
}

// harmless fences nobody.
type harmless struct{ *rbd.Pool }

func (harmless) Fence(context.Context, ...string) error { return nil }

// brief fences for five seconds, and then there is no fence any more.
type brief struct {
	*rbd.Pool
	cfg rbd.Config
}

func (b brief) Fence(_ context.Context, addrs ...string) error {
	conn, err := rbd.Connect(b.cfg, map[string]string{"admin_socket": ""})
	if err != nil {
		return err
	}
	defer conn.Shutdown()
	for _, addr := range addrs {
		command := fmt.Sprintf(`{"prefix":"osd blocklist","blocklistop":"add","addr":%q,"expire":5.0}`, addr)
		if _, _, err := conn.MonCommand([]byte(command)); err != nil {
			return err
		}
	}
	return conn.WaitForLatestOSDMap()
}

// blind sees no other user of an image.
type blind struct{ *rbd.Pool }

func (b blind) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	h, err := b.Pool.Open(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return blindHandle{h}, nil
}

type blindHandle struct{ backend.Handle }

func (h blindHandle) Watchers(context.Context) ([]string, error) {
	return []string{h.ClientAddr()}, nil
}

// forgetful keeps the guards to itself.
type forgetful struct {
	*rbd.Pool
	mu     sync.Mutex
	guards map[string]kept
	last   backend.Version
}

type kept struct {
	data    []byte
	version backend.Version
}

func (f *forgetful) Load(ctx context.Context, key string, into any) (backend.Version, error) {
	if !strings.HasPrefix(key, "guard.") {
		return f.Pool.Load(ctx, key, into)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	g, ok := f.guards[key]
	if !ok {
		return 0, fmt.Errorf("%s: %w", key, backend.ErrNotFound)
	}
	return g.version, json.Unmarshal(g.data, into)
}

func (f *forgetful) CompareAndSwap(ctx context.Context, key string, old backend.Version, value any) (backend.Version, error) {
	if !strings.HasPrefix(key, "guard.") {
		return f.Pool.CompareAndSwap(ctx, key, old, value)
	}
	data, err := json.Marshal(value)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.guards[key] = kept{data, f.last}
	return f.last, err
}

func (f *forgetful) Delete(ctx context.Context, key string, old backend.Version) error {
	if !strings.HasPrefix(key, "guard.") {
		return f.Pool.Delete(ctx, key, old)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.guards, key)
	return nil
}
