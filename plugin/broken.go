package plugin

import (
	"context"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// Broken is the Driver of a plugin that cannot work, for a setting that is
// wrong say: whoever wants a volume is told why. Had the plugin ended instead,
// Docker would only say that there is no socket.
type Broken struct{ Reason error }

var _ Driver = Broken{}

// Create tells the reason.
func (b Broken) Create(context.Context, string, map[string]string) error { return b.Reason }

// Get returns the reason, which is not that there is no such volume.
func (b Broken) Get(context.Context, string) (driver.Volume, error) {
	return driver.Volume{}, b.Reason
}

// List tells the reason.
func (b Broken) List(context.Context) ([]driver.Volume, error) { return nil, b.Reason }

// Path knows no mounts.
func (b Broken) Path(context.Context, string) string { return "" }

// Mount tells the reason.
func (b Broken) Mount(context.Context, string, string) (string, error) { return "", b.Reason }

// Keep does nothing: nothing is mounted.
func (b Broken) Keep(context.Context, string, string) {}

// Unmount tells the reason.
func (b Broken) Unmount(context.Context, string, string) error { return b.Reason }

// Remove tells the reason.
func (b Broken) Remove(context.Context, string) error { return b.Reason }

// GuardStatus tells the reason.
func (b Broken) GuardStatus(context.Context) ([]guard.Status, error) { return nil, b.Reason }

// FenceNode tells the reason.
func (b Broken) FenceNode(context.Context, string, string) ([]guard.Status, error) {
	return nil, b.Reason
}

// Snapshots tells the reason.
func (b Broken) Snapshots(context.Context, string) ([]backend.Snapshot, error) { return nil, b.Reason }

// CreateSnapshot tells the reason.
func (b Broken) CreateSnapshot(context.Context, string, string) (bool, error) { return false, b.Reason }

// RemoveSnapshot tells the reason.
func (b Broken) RemoveSnapshot(context.Context, string, string) error { return b.Reason }

// Rollback tells the reason.
func (b Broken) Rollback(context.Context, string, string) error { return b.Reason }
