package rbd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
)

// timeouts bound what hangs inside librados, so that a thread left behind by a
// call comes back in the end. The admin socket goes: its thread dies of
// SIGPIPE in a Go process, and nobody looks at it.
var timeouts = map[string]string{
	"client_mount_timeout": "10",
	"rados_mon_op_timeout": "20",
	"rados_osd_op_timeout": "30",
	"admin_socket":         "",
}

// Connect makes a connection as the configuration says; options come on top.
// The caller shuts it down.
func Connect(cfg Config, options map[string]string) (*rados.Conn, error) {
	conn, err := newConn(cfg, options)
	if err != nil {
		return nil, err
	}
	return conn, greet(conn, cfg)
}

// greet finds a monitor that accepts the key.
func greet(conn *rados.Conn, cfg Config) error {
	err := conn.Connect()
	if err == nil {
		return nil
	}
	switch errno(err) {
	case syscall.ENOENT:
		return fmt.Errorf("connect as %s: no key found (%w); put its keyring beside %s", cfg.client(), err, cfg.ConfFile)
	case syscall.EACCES, syscall.EPERM:
		return fmt.Errorf("connect as %s: the cluster does not accept the key (%w); if it was rotated, put what ceph auth get %s prints beside %s",
			cfg.client(), err, cfg.client(), cfg.ConfFile)
	case syscall.EIO, syscall.EINVAL: // librados cannot make anything of the key (16.2, 18.2: EIO)
		return fmt.Errorf("connect as %s: %s (%w)", cfg.client(), cfg.keyTrouble(conn), err)
	case syscall.ETIMEDOUT:
		return fmt.Errorf("connect as %s: %s (%w)", cfg.client(), noMonitor(monitorsOf(conn)), err)
	}
	return fmt.Errorf("connect as %s: %w", cfg.client(), err)
}

// keyTrouble says what may be wrong with the key.
func (cfg Config) keyTrouble(conn *rados.Conn) string {
	key, err := keyOf(cfg.client(), conn.GetConfigOption)
	if err != nil {
		return err.Error()
	}
	switch kind, err := KeyType(key); {
	case err != nil:
		return fmt.Sprintf("its key cannot be used: %v; put what ceph auth get %s prints beside %s", err, cfg.client(), cfg.ConfFile)
	case kind == KeyAES:
		return "librados cannot use the configuration or the key; see " + cfg.ConfFile
	default:
		return fmt.Sprintf("its key is of type %s, which this librados is too old for; take a plugin with a newer one, or %s", kind, OldKey(cfg.client()))
	}
}

// newConn makes a connection, without connecting.
func newConn(cfg Config, options map[string]string) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(cfg.Cluster, cfg.client())
	if err != nil {
		return nil, fmt.Errorf("ceph client %s: %w", cfg.User, err)
	}
	if err := conn.ReadConfigFile(cfg.ConfFile); err != nil {
		return nil, fmt.Errorf("read %s: %w (is /etc/ceph of the host there?)", cfg.ConfFile, err)
	}
	keyring := cfg.Keyring
	if keyring == "" {
		keyring = cfg.beside(conn)
	}
	set := func(option, value string) {
		if err == nil {
			if err = conn.SetConfigOption(option, value); err != nil {
				err = fmt.Errorf("ceph option %s=%s: %w", option, value, err)
			}
		}
	}
	if keyring != "" {
		set("keyring", keyring)
	}
	for option, value := range options {
		set(option, value)
	}
	return conn, err
}

// client is the name of the user as Ceph has it in full.
func (cfg Config) client() string { return "client." + strings.TrimPrefix(cfg.User, "client.") }

// beside is the keyring in the directory of the configuration file, under one of
// the names that Ceph looks for in /etc/ceph, if none of those that are configured
// is there; "" if one is, or if there is none here either.
func (cfg Config) beside(conn *rados.Conn) string {
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if files, err := conn.GetConfigOption("keyring"); err != nil || slices.ContainsFunc(fileNames(files), there) {
		return ""
	}
	for _, name := range []string{cfg.Cluster + "." + cfg.client() + ".keyring", cfg.Cluster + ".keyring", "keyring", "keyring.bin"} {
		if path := filepath.Join(filepath.Dir(cfg.ConfFile), name); there(path) {
			return path
		}
	}
	return ""
}

// monitorsOf is where a configuration says that the monitors are.
func monitorsOf(conn *rados.Conn) string {
	if hosts, err := conn.GetConfigOption("mon_host"); err == nil && hosts != "" {
		return "mon_host = " + hosts
	}
	return "ceph.conf names none"
}

// noMonitor is what there is to say when none of them answers.
func noMonitor(mons string) string {
	return "no monitor answers (" + mons + "); is this node's network up, is ceph running?"
}
