package backend

import "context"

// Records keeps small JSON records beside the images. Every change is one
// atomic compare-and-swap, wherever it comes from and however late it arrives.
type Records interface {
	// Load reads a record and returns its version; ErrNotFound if there is none.
	Load(ctx context.Context, key string, into any) (Version, error)
	// CompareAndSwap replaces the record of the given version; version 0 means that there
	// must be none. ErrConflict if somebody was faster.
	CompareAndSwap(ctx context.Context, key string, old Version, value any) (Version, error)
	// Delete takes the record of the given version away; ErrConflict as for CompareAndSwap.
	Delete(ctx context.Context, key string, old Version) error
	// List lists the records whose key begins like this. It goes through all
	// objects of the pool, thousands a second: nothing to wait for.
	List(ctx context.Context, prefix string) ([]string, error)
}

// Version is the version of a record; 0 = there is none. A record that is
// deleted and made again does not get an old version again.
type Version uint64
