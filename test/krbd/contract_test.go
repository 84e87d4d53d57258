package krbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/krbd/wire"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// remote is a krbd.Mapper in a guest.
type remote struct {
	node   *node
	config wire.Request
	number int
}

var _ backend.Mapper = remote{}

var numbers atomic.Int64

// serveMapper starts the mappers of a guest, once per boot.
func (n *node) serveMapper() error {
	_, err := n.Sh(quick, fmt.Sprintf("cat /run/mapper.pid 2>/dev/null || { setsid %s -listen 10.0.2.15:%d >/run/mapper.log 2>&1 </dev/null & echo $! >/run/mapper.pid; }",
		n.file("mapper"), mapperPort))
	if err != nil {
		return err
	}
	return n.within(time.Minute, func() error {
		_, err := n.call(context.Background(), wire.Request{Op: "write", Device: "/dev/null"})
		return err
	})
}

func (n *node) call(ctx context.Context, q wire.Request) (a wire.Answer, err error) {
	q.Limit = n.Stretch(time.Minute)
	if deadline, ok := ctx.Deadline(); ok {
		q.Limit = time.Until(deadline)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), q.Limit+n.Stretch(10*time.Second))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL(mapperPort), bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer func() { _ = resp.Body.Close() }()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

func (m remote) call(ctx context.Context, q wire.Request) (wire.Answer, error) {
	q.Mapper, q.Conf, q.User, q.Pool, q.Namespace, q.MSMode = m.number, m.config.Conf, m.config.User, m.config.Pool, m.config.Namespace, m.config.MSMode
	q.Keyring, q.Pause = m.config.Keyring, m.config.Pause
	a, err := m.node.call(ctx, q)
	if err == nil {
		err = a.Err()
	}
	return a, err
}

func (m remote) Map(ctx context.Context, image backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	a, err := m.call(ctx, wire.Request{Op: "map", Image: image, Mode: mode})
	return a.Mapping, err
}

func (m remote) Unmap(ctx context.Context, key string) error {
	_, err := m.call(ctx, wire.Request{Op: "unmap", Text: key})
	return err
}

func (m remote) ForceUnmap(ctx context.Context, key string) error {
	_, err := m.call(ctx, wire.Request{Op: "drop", Text: key})
	return err
}

func (m remote) Mappings(ctx context.Context) ([]backend.Mapping, error) {
	a, err := m.call(ctx, wire.Request{Op: "mappings"})
	return a.Mappings, err
}

func (m remote) Size(ctx context.Context, of backend.Mapping) (uint64, error) {
	a, err := m.call(ctx, wire.Request{Op: "size", Mapping: of})
	return a.Size, err
}

func (m remote) Supports(features []string) error {
	_, err := m.call(context.Background(), wire.Request{Op: "maps", Image: backend.Image{Features: features}})
	return err
}

// mappers is a node as the contract wants it, for a pool.
func (n *node) mappers(t *testing.T, cfg rbd.Config, msMode string) backendtest.Node {
	t.Helper()
	must(t, n.serveMapper())
	do := func(q wire.Request) (wire.Answer, error) {
		a, err := n.call(context.Background(), q)
		if err == nil {
			err = a.Err()
		}
		return a, err
	}
	return backendtest.Node{
		Mapper: func() backend.Mapper {
			return remote{n, wire.Request{Conf: cfg.ConfFile, User: cfg.User, Pool: cfg.Pool, Namespace: cfg.Namespace, MSMode: msMode}, int(numbers.Add(1))}
		},
		Hold: func(t *testing.T, device string) func() {
			_, err := do(wire.Request{Op: "hold", Device: device})
			must(t, err)
			return func() { _, _ = do(wire.Request{Op: "release", Device: device}) }
		},
		Write: func(device, text string) error {
			_, err := do(wire.Request{Op: "write", Device: device, Text: text})
			return err
		},
		Read: func(device string) (string, error) {
			a, err := do(wire.Request{Op: "read", Device: device})
			return a.Text, err
		},
	}
}

func snapshot(cfg rbd.Config) func(t *testing.T, image, name string) {
	return func(t *testing.T, image, name string) {
		testbed.RBD(t, "snap", "create", "--no-progress", cfg.Pool+"/"+cfg.Namespace+"/"+image+"@"+name)
	}
}

func TestContract(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	backendtest.Mapper(t, pool, snapshot(cfg), one.mappers(t, cfg, ""), two.mappers(t, cfg, ""))
}

// What is encrypted for librbd dm-crypt opens. To open luks1 takes a guest, which has
// no hardware of its own, half a minute.
func TestEncrypted(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	backendtest.Encrypted(t, pool, one.mappers(t, cfg, ""), two.mappers(t, cfg, ""), "luks2")
}
