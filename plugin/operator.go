package plugin

import (
	"context"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// FenceRequest names the node that an operator knows to be dead.
// Where two machines have the name, an address tells which: an IP address of its
// Ceph clients, or a client of it as Guard.List shows them.
type FenceRequest struct {
	Node    string `json:"node"`
	Address string `json:"address,omitempty"`
}

// GuardResponse answers Guard.List with the volumes that nodes have, and
// Guard.Fence with those that were taken. Err is the first line to read: with
// it the list is what could be learned, or done, all the same.
type GuardResponse struct {
	Guards []guard.Status `json:"guards"`
	Err    string         `json:"Err,omitempty"`
}

func (s *Server) guards(ctx context.Context, _ empty) (GuardResponse, error) {
	return s.answer(s.Driver.GuardStatus(ctx))
}

func (s *Server) fence(ctx context.Context, r FenceRequest) (GuardResponse, error) {
	return s.answer(s.Driver.FenceNode(ctx, r.Node, r.Address))
}

// answer sends what there is: in an emergency half of it is better than none.
func (s *Server) answer(all []guard.Status, err error) (GuardResponse, error) {
	if len(all) == 0 {
		return GuardResponse{Guards: []guard.Status{}}, err
	}
	if err == nil {
		return GuardResponse{Guards: all}, nil
	}
	s.Log.Error(err)
	return GuardResponse{Guards: all, Err: err.Error()}, nil
}
