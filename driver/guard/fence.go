package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// FenceNode takes all volumes from a node that is known to be dead, without
// waiting for Ceph to miss it, and returns them. Its clients are barred for
// years before their guards are given back, so a node that was alive after all
// can do no harm; its containers get I/O errors. It is refused for this node, and
// for a name that two machines have, until an address tells which is meant: an IP
// address of its Ceph clients, or a client as List shows it. "" = whichever.
func (g *Guards) FenceNode(ctx context.Context, node, address string) (taken []Status, err error) {
	ip, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	if node == "" {
		return nil, backend.Invalidf("request: it must name the node")
	}
	// A node that was called dead and is not may just be mounting.
	for range 3 {
		// What hangs, as the dead node had OSDs, must leave time for the rest.
		look, cancel := context.WithTimeout(ctx, 15*time.Second)
		all, lookErr := g.List(look)
		cancel()
		held, chooseErr := g.choose(ctx, node, ip, all)
		if chooseErr != nil {
			return taken, errors.Join(chooseErr, lookErr)
		}
		if len(held) == 0 {
			if len(taken) == 0 && lookErr == nil {
				lookErr = fmt.Errorf("volumes of this node: %w; nodes with volumes: %s", backend.ErrNotFound, nodes(all))
			}
			return taken, lookErr // a volume that cannot be looked at may be the node's, too
		}
		now, takeErr := g.fenceAll(ctx, held)
		taken = append(taken, now...)
		if takeErr != nil {
			return taken, errors.Join(lookErr, takeErr)
		}
	}
	return taken, fmt.Errorf("%w: the node goes on mounting volumes, so it is alive; power it off and ask again", backend.ErrInUse)
}

// fenceAll takes volumes from their holders. One whose guard has changed
// meanwhile is left, and not returned.
func (g *Guards) fenceAll(ctx context.Context, held []Status) (taken []Status, err error) {
	var addrs []string
	for _, h := range held {
		if h.State != Reading { // it has nothing to write with
			addrs = append(addrs, h.Addrs...)
		}
	}
	if len(addrs) > 0 {
		if err := g.Fences.Fence(ctx, addrs...); err != nil {
			return nil, err
		}
	}
	for _, h := range held {
		deleteErr := g.takeFrom(ctx, h)
		if errors.Is(deleteErr, backend.ErrConflict) || errors.Is(deleteErr, backend.ErrNotFound) {
			continue
		}
		if deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("volume %s: %w", h.Volume, deleteErr))
			continue
		}
		g.Log.WithField("volume", h.Volume).Warnf("took the volume from %s of node %s (%s since %s) for an operator",
			strings.Join(h.Addrs, ", "), h.Node, h.State, h.Since.Format(time.RFC3339))
		taken = append(taken, h)
	}
	return taken, err
}

// takeFrom takes a guard away, or the note of a reader.
func (g *Guards) takeFrom(ctx context.Context, h Status) error {
	if h.State != Reading {
		return g.Records.Delete(ctx, guardKey(h.imageID), h.version)
	}
	return g.changeReaders(ctx, h.imageID, func(all []Reader) []Reader {
		return slices.DeleteFunc(all, func(r Reader) bool { return r.Node == h.Node && r.Addr == h.Addrs[0] })
	})
}

// parseAddress takes an IP address, or that of a client; not valid if there is none.
func parseAddress(address string) (netip.Addr, error) {
	if address == "" {
		return netip.Addr{}, nil
	}
	ip, err := netip.ParseAddr(address)
	if err == nil {
		return ip.Unmap(), nil
	}
	ip, ok := addrIP(address)
	if !ok {
		return netip.Addr{}, backend.Invalidf("request: address %.60q: give an IP address, or a client as Guard.List shows it", address)
	}
	return ip, nil
}

// choose picks what is to be taken from a node; an error if that cannot be told from
// what another machine of the name has, or this one.
func (g *Guards) choose(ctx context.Context, node string, ip netip.Addr, all []Status) ([]Status, error) {
	if !ip.IsValid() {
		if err := OneMachine(node, all); err != nil {
			return nil, err
		}
	}
	mapped, err := g.Local.Mappings(ctx)
	if err != nil {
		return nil, err
	}
	var held []Status
	either := node == g.Node.Name && !ip.IsValid() // this node, or another that is called so
	for _, h := range all {
		if h.Node != node || ip.IsValid() && !h.at(ip) {
			continue
		}
		own, err := g.isOwnStatus(h, mapped)
		switch {
		case err != nil:
			return nil, err
		case own && either:
			continue
		case own:
			return nil, backend.Invalidf("request: %s is this very node: volume %s is in use here, by client %s; ask the plugin of another one",
				node, h.Volume, strings.Join(h.Addrs, ", "))
		}
		held = append(held, h)
	}
	if !either {
		return held, nil
	}
	if len(held) == 0 {
		return nil, backend.Invalidf("request: %s is this very node; ask the plugin of another one", node)
	}
	return nil, backend.Invalidf("request: %s is the name of this very node, too; say which is meant: the other has the address %s",
		node, strings.Join(addressesOf(held), " or "))
}

// isOwnStatus tells whether this node has a volume: by its name and address, or whatever
// these are, as the clients are its own.
func (g *Guards) isOwnStatus(h Status, mapped []backend.Mapping) (bool, error) {
	if slices.Contains(h.Addrs, h.client) || slices.ContainsFunc(mapped, func(m backend.Mapping) bool { return slices.Contains(h.Addrs, m.Addr) }) {
		return true, nil
	}
	if h.State == Reading {
		return g.OwnReader(Reader{Node: h.Node, Boot: h.Boot, Addr: h.Addrs[0]})
	}
	return g.isNamed(h.Record)
}

// at tells whether one of the clients has the address.
func (h Status) at(ip netip.Addr) bool {
	return slices.ContainsFunc(h.Addrs, func(a string) bool {
		is, ok := addrIP(a)
		return ok && is == ip
	})
}

// OneMachine refuses a name that clients of two addresses have which are both alive:
// cloned machines share their name.
func OneMachine(node string, all []Status) error {
	live := addressesOf(slices.DeleteFunc(slices.Clone(all), func(h Status) bool { return h.Node != node || !h.Alive }))
	if len(live) > 1 {
		return backend.Invalidf("request: machines with the addresses %s are called %s, and alive; say which is meant, by node and address",
			strings.Join(live, " and "), node)
	}
	return nil
}

// addressesOf are the IP addresses of clients.
func addressesOf(all []Status) []string {
	addrs := map[string]bool{}
	for _, h := range all {
		for _, a := range h.Addrs {
			if ip, ok := addrIP(a); ok {
				addrs[ip.String()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(addrs))
}

// nodes names the nodes that have something.
func nodes(all []Status) string {
	names := map[string]bool{}
	for _, h := range all {
		names[h.Node] = true
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}
