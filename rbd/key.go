package rbd

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

// Types of keys.
const (
	KeyAES     = "aes"
	KeyAES256K = "aes256k"
)

// KeyType names the type of a key, given as it is in the keyring: base64, of which the
// first two bytes are the type (Ceph, src/auth/Crypto.h). Keys of type aes are those of
// every Ceph. Those of type aes256k came with CVE-2025-30156: clusters made by 19.2.6,
// 20.2.4, 21.2 or newer take no other, librados before these does not know them, nor
// does Linux before 7.0.
func KeyType(key string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(data) < 2 {
		return "", errors.New("it is not base64 of a key")
	}
	switch n := binary.LittleEndian.Uint16(data); n {
	case 1:
		return KeyAES, nil
	case 2:
		return KeyAES256K, nil
	default:
		return fmt.Sprintf("number %d", n), nil
	}
}

// Key reads the user's key, without connecting.
func (cfg Config) Key() (string, error) {
	conn, err := newConn(cfg, nil)
	if err != nil {
		return "", err
	}
	defer conn.Shutdown()
	return keyOf(cfg.client(), conn.GetConfigOption)
}

// OldKey is how an admin gives a user a key that everything can use.
func OldKey(user string) string {
	return "give it a key of type aes: ceph mon set auth_allowed_ciphers aes,aes256k, and some seconds later ceph auth rotate " + user +
		" --key-type aes, whose output is the new keyring"
}
