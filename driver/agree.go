package driver

import (
	"cmp"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// agree tells whether an existing image is what the request asks for: only
// what the request itself says is compared.
func (o options) agree(size uint64, meta map[string]string) error {
	differ := func(option, is string) error {
		return fmt.Errorf("%w with %s %s, but %s was asked for; remove that volume or leave the option out",
			backend.ErrExists, option, is, o.given[option])
	}
	if o.given[OptSize] != "" && o.size != size {
		return differ(OptSize, formatSize(size))
	}
	if is := meta[metaFSType]; is != "" && o.given[OptFSType] != "" && is != o.fstype {
		return differ(OptFSType, is)
	}
	if is := meta[metaEncryption]; o.given[OptEncryption] != "" && is != o.encryption {
		return differ(OptEncryption, cmp.Or(is, "none"))
	}
	return nil
}
