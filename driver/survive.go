package driver

import (
	"errors"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// survive logs the panic of what nobody waits for; the rest of the plugin goes on.
func (d *Driver) survive(op, volume string, do func()) {
	err := backend.Survive(func() error {
		do()
		return nil
	})
	if err == nil {
		return
	}
	log := d.log
	if met := new(backend.PanicError); errors.As(err, &met) {
		log = log.WithField("stack", string(met.Stack))
	}
	log.Error(wrap(op, volume, err))
}
