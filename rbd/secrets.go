package rbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

var _ backend.Secrets = (*Pool)(nil)

// secretKeys is where passphrases are in the cluster's config-key store: what a
// cap of the monitors can be narrowed to.
const secretKeys = "docker_volume/"

// Secret reads a passphrase; see backend.Secrets. Files are in the directory
// passphrases beside ceph.conf.
func (p *Pool) Secret(ctx context.Context, name string) ([]byte, error) {
	kind, key, _ := strings.Cut(name, ":")
	if !backend.ValidName(key) {
		return nil, fmt.Errorf("%w passphrase %q: give file:NAME or ceph:NAME", backend.ErrInvalid, name)
	}
	switch kind {
	case "file":
		path := filepath.Join(filepath.Dir(p.cfg.ConfFile), "passphrases", key)
		secret, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w passphrase %s: there is no file %s on this node", backend.ErrInvalid, name, path)
		}
		return notEmpty(name, secret, err)
	case "ceph":
		var secret []byte
		err := p.do(ctx, "read passphrase "+name, reads, func(c *client, _ *rados.IOContext) (err error) {
			secret, err = monCommand(c.conn, map[string]any{"prefix": "config-key get", "key": secretKeys + key})
			switch errno(err) {
			case syscall.ENOENT:
				return fmt.Errorf("%w: there is none; ceph config-key set %s%s -i FILE makes it", backend.ErrInvalid, secretKeys, key)
			case syscall.EACCES, syscall.EPERM:
				return fmt.Errorf("%w: this user may not read it; the README tells the cap", backend.ErrInvalid)
			}
			return err
		})
		if err != nil {
			return nil, err // a call left alone may still write to secret
		}
		return notEmpty(name, secret, nil)
	}
	return nil, fmt.Errorf("%w passphrase %q: give file:NAME or ceph:NAME", backend.ErrInvalid, name)
}

// notEmpty takes the line break off that editors and echo leave at the end.
func notEmpty(name string, secret []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, fmt.Errorf("passphrase %s: %w", name, err)
	}
	if secret = bytes.TrimSuffix(secret, []byte("\n")); len(secret) == 0 {
		return nil, fmt.Errorf("%w passphrase %s: it is empty", backend.ErrInvalid, name)
	}
	return secret, nil
}
