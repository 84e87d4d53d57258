package rbd

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/ceph/go-ceph/rados"
)

// ID reads the object that librbd keeps under an image's name, which holds the id
// behind its length (cls_rbd, set_id); see driver.Images.
func (p *Pool) ID(ctx context.Context, name string) (string, error) {
	var id string
	err := p.do(ctx, "id of image", reads, func(_ *client, ioctx *rados.IOContext) error {
		text := make([]byte, 256)
		n, err := ioctx.Read("rbd_id."+name, text, 0)
		if err != nil {
			return err
		}
		if n < 4 || uint64(binary.LittleEndian.Uint32(text))+4 != uint64(n) {
			return fmt.Errorf("object rbd_id.%s cannot be understood", name)
		}
		id = string(text[4:n])
		return nil
	})
	if err != nil {
		return "", err
	}
	return id, nil
}
