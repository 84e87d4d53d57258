package rbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sync/errgroup"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// fenceSeconds is five years, as ceph-csi fences. A short fence would be no
// fence: once the entry is gone krbd writes through a stale mapping again
// (seen with Linux 6.1). The monitors want a float: "157784760" is EINVAL.
const fenceSeconds = "157784760.0"

var _ backend.Fences = (*Pool)(nil)

// Fence puts clients on the cluster's blocklist; see backend.Fences. An entry
// that is there is never shortened by a later, shorter one, such as krbd's own
// of an hour (16.2).
func (p *Pool) Fence(ctx context.Context, addrs ...string) error {
	return p.do(ctx, "fence", changes, func(c *client, _ *rados.IOContext) error {
		var group errgroup.Group // the monitors commit once a second: all in one go
		for _, addr := range addrs {
			group.Go(func() error {
				_, err := monCommand(c.conn, map[string]any{
					"prefix": "osd blocklist", "blocklistop": "add", "addr": addr, "expire": json.RawMessage(fenceSeconds),
				})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		// Only an OSD that has the new map refuses the client. Whoever has this
		// map makes every OSD it talks to have it.
		return c.conn.WaitForLatestOSDMap()
	})
}

// Fenced looks addresses up in the blocklist; see backend.Fences.
func (p *Pool) Fenced(ctx context.Context, addrs ...string) (map[string]bool, error) {
	fenced := map[string]bool{}
	err := p.do(ctx, "read the blocklist", reads, func(c *client, _ *rados.IOContext) error {
		list, err := readBlocklist(c.conn)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			for _, e := range list {
				if e.bars(addr) {
					fenced[addr] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return fenced, nil
}

func readBlocklist(conn *rados.Conn) ([]entry, error) {
	out, err := monCommand(conn, map[string]any{"prefix": "osd blocklist ls", "format": "json"})
	if err != nil {
		return nil, err
	}
	return entries(out)
}

func monCommand(conn *rados.Conn, args map[string]any) ([]byte, error) {
	command, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	out, _, err := conn.MonCommand(command)
	return out, err
}

// entries reads the answer of osd blocklist ls: a list of clients and, right
// behind it, a list of ranges.
func entries(answer []byte) (all []entry, err error) {
	for dec := json.NewDecoder(bytes.NewReader(answer)); ; {
		var list []entry
		if err := dec.Decode(&list); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("answer of osd blocklist ls: %w", err)
		}
		all = append(all, list...)
	}
}

// entry is one of the blocklist: a client "ip:port/nonce", a host "ip:0/0", or
// a range "ip:0/bits".
type entry struct {
	Addr  string `json:"addr"`
	Range string `json:"range"`
}

func (e entry) bars(addr string) bool {
	hostport, _, _ := strings.Cut(addr, "/")
	client, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return false
	}
	if host, bits, ok := strings.Cut(e.Range, ":0/"); ok {
		prefix, err := netip.ParsePrefix(strings.Trim(host, "[]") + "/" + bits)
		return err == nil && prefix.Contains(client.Addr())
	}
	if host, all := strings.CutSuffix(e.Addr, ":0/0"); all {
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		return err == nil && ip == client.Addr()
	}
	return e.Addr == addr
}
