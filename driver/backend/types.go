package backend

import "time"

// Image is an image of the pool, as Ceph describes it.
type Image struct {
	Name     string
	ID       string    // Ceph's own id; it never comes again, unlike the name
	Size     uint64    // bytes
	Created  time.Time // by the cluster's clock
	Features []string  // librbd's names, for example "exclusive-lock"
	Parent   *Parent   // of a clone; nil = it is none, or is one no longer
	Snap     string    // a snapshot of the image; "" = the image itself

	// Encryption opens the image for Map. Ceph does not know of it; nil = it is
	// mapped as it is.
	Encryption *Encryption
}

// PoolSpec is a pool, and in it a namespace, "" = none: rbd's pool-spec.
type PoolSpec struct {
	Pool      string `json:"pool"`
	Namespace string `json:"namespace,omitempty"`
}

// String is as Ceph's tools write it: "pool" or "pool/namespace".
func (p PoolSpec) String() string {
	if p.Namespace == "" {
		return p.Pool
	}
	return p.Pool + "/" + p.Namespace
}

// Parent is a snapshot of which clones are made, and of which image.
type Parent struct {
	PoolSpec
	Image  string `json:"image"`
	ID     string `json:"id"` // of the image
	Snap   string `json:"snap"`
	SnapID uint64 `json:"snapID"` // unlike the name it never comes again in this image
}

// Same tells whether two are one snapshot, however it is called by now: that of
// a clone is renamed when it is removed.
func (p *Parent) Same(other *Parent) bool {
	return p != nil && other != nil && p.PoolSpec == other.PoolSpec && p.ID == other.ID && p.SnapID == other.SnapID
}

// Encryption opens an encrypted image: LUKS, as both librbd and dm-crypt have it.
type Encryption struct {
	Format     string // "luks1" or "luks2"
	Passphrase []byte
}

// Snapshot is one that somebody made of an image and has not removed.
type Snapshot struct {
	Name string
	ID   uint64
	Size uint64 // bytes, of the image at that time

	Created time.Time // by the cluster's clock
}

// Key tells the image, or its snapshot, from every other one: "id" or "id@snapshot".
func (i Image) Key() string { return imageKey(i.ID, i.Snap) }

func imageKey(id, snap string) string {
	if snap == "" {
		return id
	}
	return id + "@" + snap
}

// ImageSpec says how an image is to be made.
type ImageSpec struct {
	Name       string   `json:"name"`
	Size       uint64   `json:"size"`                 // bytes
	ObjectSize uint64   `json:"objectSize,omitempty"` // bytes, a power of two; 0 = Ceph's default
	DataPool   string   `json:"dataPool,omitempty"`   // pool for the data objects; "" = the image's own
	Features   []string `json:"features"`             // librbd's names

	// StripeUnit, in bytes, and StripeCount, of objects, spread what is written
	// one after the other; 0 = no more than object by object.
	StripeUnit  uint64 `json:"stripeUnit,omitempty"`
	StripeCount uint64 `json:"stripeCount,omitempty"`

	// Parent makes it a clone of that snapshot, and as large, at once and without
	// a copy; Size then is what it is to become. nil = an empty image.
	Parent *Parent `json:"parent,omitempty"`
}

// Layout is how an image lies on the cluster.
type Layout struct {
	ObjectSize  uint64 // bytes
	StripeUnit  uint64 // bytes
	StripeCount uint64
	DataPool    string // "" = the image's own
}

// FeatureLock is the image feature without which nothing is mapped: with it
// Ceph's own clients fence a dead writer once more, before they write.
const FeatureLock = "exclusive-lock"
