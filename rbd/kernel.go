package rbd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
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
			return fmt.Errorf("%w: %s has fsid = %s, but the cluster is %s: correct the file", driver.ErrInvalid, p.cfg.ConfFile, fsid, is)
		}
		out, err := monCommand(c.conn, map[string]any{"prefix": "mon dump", "format": "json"})
		if err != nil {
			return err
		}
		v1, v2, err := monitors(out)
		if err != nil {
			return err
		}
		files, err := c.conn.GetConfigOption("keyring")
		if err != nil {
			return err
		}
		user := strings.TrimPrefix(p.cfg.User, "client.")
		key, err := keyOf("client."+user, strings.FieldsFunc(files, func(r rune) bool { return r == ',' || r == ' ' }))
		k = Kernel{V1: v1, V2: v2, Key: key, User: user}
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

// keyOf finds a user's key in the first keyring that has it.
func keyOf(user string, files []string) (string, error) {
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			continue // Ceph's default names four files, of which one exists
		}
		key, err := keyIn(user, bufio.NewScanner(file))
		_ = file.Close()
		if err != nil || key != "" {
			return key, err
		}
	}
	return "", fmt.Errorf("no key of %s in %s", user, strings.Join(files, ", "))
}

func keyIn(user string, lines *bufio.Scanner) (key string, err error) {
	section := ""
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		if name, value, ok := strings.Cut(line, "="); ok && section == user && strings.TrimSpace(name) == "key" {
			key = strings.TrimSpace(value)
		}
	}
	return key, lines.Err()
}
