package backend

import "context"

// Fences bars clients from the cluster.
type Fences interface {
	// Fence bars the clients of these addresses for years and returns when no
	// OSD that the new map reaches will accept a write of theirs. Fencing twice
	// is no error.
	Fence(ctx context.Context, addrs ...string) error
	// Fenced tells which of the addresses are barred now.
	Fenced(ctx context.Context, addrs ...string) (map[string]bool, error)
}
