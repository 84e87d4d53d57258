package rbd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Kernel is what the kernel's client needs to know of a cluster and what
// librados finds out by itself.
type Kernel struct {
	V1, V2 []string // addresses of the monitors, "ip:port", by version of the protocol
	Key    string   // base64, as in the keyring
	User   string   // without "client."
}

// Kernel asks the cluster and reads the keyring. A configuration that bears the
// id of another cluster is an error.
func (p *Pool) Kernel(ctx context.Context) (k Kernel, err error) {
	fsid, err := p.FSID(ctx)
	if err != nil {
		return Kernel{}, err
	}
	err = p.do(ctx, "ask for the monitors", reads, func(c *client, _ *rados.IOContext) error {
		if is, err := c.conn.GetFSID(); err != nil {
			return err
		} else if is != fsid {
			return fmt.Errorf("%w: %s has fsid = %s, but the cluster is %s: correct the file", backend.ErrInvalid, p.cfg.ConfFile, fsid, is)
		}
		out, err := monCommand(c.conn, map[string]any{"prefix": "mon dump", "format": "json"})
		if err != nil {
			return err
		}
		v1, v2, err := monitors(out)
		if err != nil {
			return err
		}
		key, err := keyOf(p.cfg.client(), c.conn.GetConfigOption)
		k = Kernel{V1: v1, V2: v2, Key: key, User: strings.TrimPrefix(p.cfg.User, "client.")}
		return err
	})
	if err != nil {
		return Kernel{}, err
	}
	return k, nil
}

// FSID is the id of the cluster, from its configuration or, if that does not
// say, the cluster itself.
func (p *Pool) FSID(ctx context.Context) (string, error) {
	p.mu.Lock()
	fsid := p.fsid
	p.mu.Unlock()
	if fsid != "" {
		return fsid, nil
	}
	fsid, err := p.cfg.FSID()
	if err != nil || fsid == "" {
		err = p.do(ctx, "ask for the id of the cluster", reads, func(c *client, _ *rados.IOContext) (err error) {
			fsid, err = c.conn.GetFSID()
			return err
		})
	}
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fsid = fsid
	return fsid, nil
}

// FSID reads the id of the cluster from its configuration, without asking it;
// "" if it does not say.
func (cfg Config) FSID() (string, error) {
	conn, err := newConn(cfg, nil)
	if err != nil {
		return "", err
	}
	defer conn.Shutdown()
	fsid, err := conn.GetConfigOption("fsid")
	if strings.Trim(fsid, "0-") == "" {
		fsid = ""
	}
	return fsid, err
}

func monitors(dump []byte) (v1, v2 []string, err error) {
	var answer struct {
		Mons []struct {
			PublicAddrs struct {
				AddrVec []struct{ Type, Addr string } `json:"addrvec"`
			} `json:"public_addrs"`
		} `json:"mons"`
	}
	if err := json.Unmarshal(dump, &answer); err != nil {
		return nil, nil, fmt.Errorf("answer of mon dump: %w", err)
	}
	for _, mon := range answer.Mons {
		for _, a := range mon.PublicAddrs.AddrVec {
			switch a.Type {
			case "v1":
				v1 = append(v1, a.Addr)
			case "v2":
				v2 = append(v2, a.Addr)
			}
		}
	}
	return v1, v2, nil
}
