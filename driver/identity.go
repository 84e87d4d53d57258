package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// A name may be another image's by now: rbd mv, rbd trash mv and a new image leave
// what is mapped as it is, under the name of before. So ids are compared.

// errReplaced tells that the mapping of a name is not of the image that has it now.
var errReplaced = errors.New("the image was renamed, removed or replaced under the mount")

// current is errReplaced if the image of a mapping has its name no longer. While
// Ceph is away nothing is known, and what is mounted is used on.
func (d *Driver) current(ctx context.Context, m backend.Mapping) error {
	if d.outage.why() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.patience/2)
	defer cancel()
	id, err := d.images.ID(ctx, m.Name)
	switch {
	case err == nil && id == m.ID, errors.Is(err, backend.ErrUnavailable):
		return nil
	case err == nil, errors.Is(err, backend.ErrNotFound):
		return d.replaced(m)
	}
	return err
}

func (d *Driver) replaced(m backend.Mapping) error {
	return fmt.Errorf("%w: %w (%s is the image with id %s, not the %s of now); stop the containers on this node (%s) that use it",
		backend.ErrInUse, errReplaced, m.Device, m.ID, m.Name, d.node.Name)
}

// unstageReplaced lets go of what is mapped here of an image that had the name
// before, unless containers have it.
func (d *Driver) unstageReplaced(ctx context.Context, name string) error {
	m, found, err := d.mapping(ctx, name)
	if err != nil || !found {
		return err
	}
	err = d.current(ctx, m)
	if !errors.Is(err, errReplaced) {
		return err
	}
	if letGoErr := d.unstage(ctx, name); letGoErr != nil {
		return backend.Also(err, "let go of it", letGoErr)
	}
	d.refs.forget(name)
	return nil
}

// alone makes sure that an image which is about to be mounted shares its name with
// nothing that is mapped here.
func (d *Driver) alone(image backend.Image, mapped []backend.Mapping) error {
	if m, there := other(image, mapped); there {
		return d.replaced(m)
	}
	return nil
}

// other is what is mapped here of another image under the name of this one.
func other(image backend.Image, mapped []backend.Mapping) (backend.Mapping, bool) {
	for _, m := range mapped {
		if m.Name == image.Name && m.ID != image.ID {
			return m, true
		}
	}
	return backend.Mapping{}, false
}
