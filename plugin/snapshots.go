package plugin

import (
	"context"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// SnapshotRequest names a volume and, but for Snapshot.List, a snapshot of it.
type SnapshotRequest struct {
	Name     string `json:"volume"`
	Snapshot string `json:"snapshot"`
}

// SnapshotInfo is one of the answer to Snapshot.List.
type SnapshotInfo struct {
	Snapshot string `json:"snapshot"`
	Size     uint64 `json:"size"`    // bytes, of the image at that time
	Created  string `json:"created"` // RFC 3339, UTC
}

// SnapshotList answers Snapshot.List, the oldest first.
type SnapshotList struct {
	Snapshots []SnapshotInfo `json:"snapshots"`
}

// SnapshotMade answers Snapshot.Create. Frozen: all that was written is in it. Else
// the volume is not mounted on this node, and what was synced is in it.
type SnapshotMade struct {
	Snapshot string `json:"snapshot"`
	Frozen   bool   `json:"frozen"`
}

func (s *Server) snapshots(ctx context.Context, r SnapshotRequest) (SnapshotList, error) {
	all, err := s.Driver.Snapshots(ctx, r.Name)
	list := SnapshotList{Snapshots: []SnapshotInfo{}}
	for _, snap := range all {
		list.Snapshots = append(list.Snapshots, SnapshotInfo{Snapshot: snap.Name, Size: snap.Size, Created: snap.Created.UTC().Format(time.RFC3339)})
	}
	return list, err
}

func (s *Server) snap(ctx context.Context, r SnapshotRequest) (SnapshotMade, error) {
	frozen, err := s.Driver.CreateSnapshot(ctx, r.Name, r.Snapshot)
	return SnapshotMade{Snapshot: r.Snapshot, Frozen: frozen}, err
}

func (s *Server) unsnap(ctx context.Context, r SnapshotRequest) (empty, error) {
	return empty{}, s.Driver.RemoveSnapshot(ctx, r.Name, r.Snapshot)
}

func (s *Server) rollback(ctx context.Context, r SnapshotRequest) (empty, error) {
	return empty{}, s.Driver.Rollback(ctx, r.Name, r.Snapshot)
}

var _ Driver = driver.Pools(nil)
