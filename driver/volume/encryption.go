package volume

import (
	"cmp"
	"slices"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// EncryptionFormats are the values of the option encryption.
var EncryptionFormats = []string{"luks2", "luks1", "none"}

// headerSize is what a LUKS header takes of an image, in bytes: see package rbd.
func (o *Spec) headerSize() uint64 {
	const size = 16 * mib
	round := cmp.Or(o.ObjectSize, mib4) * cmp.Or(o.StripeCount, 1)
	return (size + round - 1) / round * round
}

// parseEncryption reads how a new volume is encrypted. A copy is as its original.
func (o *Spec) parseEncryption(defaults map[string]string) error {
	if o.Source.Volume != "" {
		return nil
	}
	o.Encryption = cmp.Or(o.Given[OptEncryption], defaults[OptEncryption], "none")
	o.Passphrase = cmp.Or(o.Given[OptPassphrase], defaults[OptPassphrase])
	switch {
	case o.Encryption == "none" && o.Given[OptPassphrase] != "":
		return backend.Invalidf("option %s=%q: say %s=luks2 too", OptPassphrase, o.Passphrase, OptEncryption)
	case o.Encryption == "none":
		o.Encryption, o.Passphrase = "", ""
		return nil
	case !slices.Contains(EncryptionFormats, o.Encryption):
		return backend.Invalidf("option %s=%q: allowed are %s", OptEncryption, o.Encryption, strings.Join(EncryptionFormats, ", "))
	case o.Passphrase == "":
		return backend.Invalidf("option %s=%q: name its passphrase, %s=file:NAME or ceph:NAME", OptEncryption, o.Encryption, OptPassphrase)
	}
	return checkSecretName(o.Passphrase)
}

func checkSecretName(name string) error {
	kind, key, _ := strings.Cut(name, ":")
	if kind != "file" && kind != "ceph" || !backend.ValidName(key) {
		return backend.Invalidf("option %s=%q: give file:NAME, a file of each node, or ceph:NAME, of the cluster's config-key store; never the passphrase itself",
			OptPassphrase, name)
	}
	return nil
}
