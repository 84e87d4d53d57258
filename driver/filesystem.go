package driver

import (
	"context"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// fstypeOf is what is noted of a volume's filesystem, or what is found there.
func (d *Driver) fstypeOf(ctx context.Context, meta volume.Metadata, m backend.Mapping) (string, error) {
	if meta.FSType != "" {
		return meta.FSType, nil
	}
	fstype, err := d.fs.Probe(ctx, m.Device)
	if err != nil {
		err = fmt.Errorf("%w; the image was not made by this plugin, so it is not formatted: "+
			"make a filesystem on it yourself, or remove it", err)
	}
	return fstype, err
}

// encryption is how to open an image with this metadata; nil if it is not encrypted.
func (d *Driver) encryption(ctx context.Context, meta volume.Metadata) (*backend.Encryption, error) {
	if meta.Encryption == "" {
		return nil, nil
	}
	passphrase, err := d.secrets.Secret(ctx, meta.Passphrase)
	if err != nil {
		return nil, err
	}
	return &backend.Encryption{Format: meta.Encryption, Passphrase: passphrase}, nil
}
