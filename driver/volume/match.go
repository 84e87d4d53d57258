package volume

import (
	"cmp"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Match tells whether an existing image is what the request asks for: only
// what the request itself says is compared.
func (o Spec) Match(size uint64, meta Metadata) error {
	differ := func(option, is string) error {
		return fmt.Errorf("%w with %s %s, but %s was asked for; remove that volume or leave the option out",
			backend.ErrExists, option, is, o.Given[option])
	}
	if o.Given[OptSize] != "" && o.Size != size {
		return differ(OptSize, FormatSize(size))
	}
	if is := meta.FSType; is != "" && o.Given[OptFSType] != "" && is != o.FSType {
		return differ(OptFSType, is)
	}
	if is := meta.Encryption; o.Given[OptEncryption] != "" && is != o.Encryption {
		return differ(OptEncryption, cmp.Or(is, "none"))
	}
	return nil
}
