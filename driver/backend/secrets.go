package backend

import "context"

// Secrets keeps passphrases.
type Secrets interface {
	// Secret reads the passphrase of this name, "file:NAME", a file of this
	// node, or "ceph:NAME", of the cluster's config-key store. ErrInvalid if there
	// is none, with where it was looked for.
	Secret(ctx context.Context, name string) ([]byte, error)
}
