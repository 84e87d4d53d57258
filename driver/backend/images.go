package backend

import "context"

// Images is one pool (and namespace) of a Ceph cluster. Every method returns
// ErrUnavailable, and within its context's deadline, when Ceph does not answer.
type Images interface {
	// Ping asks Ceph something that is about no image. An error means that Ceph is
	// away: no monitor or OSD answers, the key is refused, the pool is gone.
	Ping(ctx context.Context) error
	// Create makes an image. ErrExists if the name is taken; the image there is
	// not touched. ErrInvalid if it can never be made as it is asked for. A clone
	// bears the metadata of its parent.
	Create(ctx context.Context, spec ImageSpec) error
	// Exists tells whether the name is taken; much faster than to open in vain.
	Exists(ctx context.Context, name string) (bool, error)
	// ID is the id of the image that has the name now; ErrNotFound if there is none.
	// It takes one question, and is no look at the image.
	ID(ctx context.Context, name string) (string, error)
	// HasID tells whether there is an image of this id, be it in the trash.
	HasID(ctx context.Context, id string) (bool, error)
	// Open opens an image; ErrNoVolume if there is none, ErrUnusable if there is one
	// that cannot be opened as it is. Opened read-write the image has this node's
	// control client among its watchers until Close.
	Open(ctx context.Context, name string, mode OpenMode) (Handle, error)
	// OpenApart opens an image read-write with a client of its own, which ends with
	// Close: for what is to go on whatever becomes of the control client.
	OpenApart(ctx context.Context, name string) (Handle, error)
	// Names lists the images that can be volumes, sorted.
	Names(ctx context.Context) ([]string, error)
	// Purge has those images in the trash deleted whose time there is up, and
	// returns their former names. One that clones still need stays, and the
	// manager is told to make them independent of it. What somebody put there
	// without a time is not touched.
	Purge(ctx context.Context) ([]string, error)
}

// OpenMode tells a look from an intent to change.
type OpenMode bool

// The two ways to open an image.
const (
	ReadOnly  OpenMode = false
	ReadWrite OpenMode = true
)
