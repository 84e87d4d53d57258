package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// create makes a volume, or says once more that it is to be there.
func (m *mix) create(r *rand.Rand, s *slot) {
	m.make(r, s, map[string]any{}, nil, []int64{0})
}

// make asks for a volume that holds this, if it is a new one.
func (m *mix) make(r *rand.Rand, s *slot, options map[string]any, parent *image, holds []int64) {
	there := s.image
	_, err := m.ask(r, s, m.node(r), "Create", map[string]any{"Name": s.name, "Opts": options}, s.unless())
	if there != nil {
		m.stands(s)
		return
	}
	if err != nil {
		return
	}
	id := m.admin.id(s.name)
	if id == "" {
		m.fault(s, "it was created, and there is no image")
		return
	}
	s.image = &image{id: id, name: s.name, may: slices.Clone(holds), snaps: map[string][]int64{}, parent: parent}
	s.image.promised, s.image.promise = s.name, m.admin.read("docker_volume.pending."+s.name)
	m.note(s, "is image %s, with %v %v", id, holds, options)
}

// stands makes sure that an image is still what its name means.
func (m *mix) stands(s *slot) {
	if !m.admin.whole(s.image.id) {
		m.fault(s, "its image %s is gone", s.image.id)
	} else if now := m.admin.id(s.name); now != s.image.id && (now != "" || s.image.hurt != "id") {
		m.fault(s, "its name means image %q, not %s", now, s.image.id)
	}
}

// source locks a volume that can be copied; nil if there is none.
func (m *mix) source(r *rand.Rand, s *slot, snapshots bool) *slot {
	for _, i := range r.Perm(len(m.slots)) {
		from := m.slots[i]
		if from == s || !from.TryLock() {
			continue
		}
		if from.whole() && (!snapshots || len(from.image.snaps) > 0) {
			return from
		}
		from.Unlock()
	}
	return nil
}

// copy makes a volume of another one, or of a snapshot of it, and so looks at that.
func (m *mix) copy(r *rand.Rand, s *slot) {
	if s.image != nil {
		return
	}
	from := m.source(r, s, false)
	if from == nil {
		return
	}
	defer from.Unlock()
	of, holds := from.name, from.image.may
	if len(from.image.snaps) > 0 && r.IntN(2) == 0 {
		snap := from.image.someSnapshot(r)
		of, holds = from.name+"@"+snap, from.image.snaps[snap]
	}
	m.make(r, s, map[string]any{"from": of}, from.image, holds)
	m.note(from, "was copied to %s", s.name)
}

// mount mounts a volume and looks at what is on it.
func (m *mix) mount(r *rand.Rand, s *slot) { m.mountOn(r, s, m.node(r)) }

func (m *mix) mountOn(r *rand.Rand, s *slot, n *mixNode) {
	if s.image == nil || s.user != nil || s.image.user != nil && s.image.user.node == n {
		return
	}
	holder := s.image.user // under a former name
	u := &user{node: n, id: fmt.Sprintf("c%d", r.Uint32()), deaths: n.deaths.Load()}
	answer, err := m.ask(r, s, n, "Mount", map[string]any{"Name": s.name, "ID": u.id}, s.unless())
	if err != nil {
		return
	}
	if holder != nil && s.image.user == holder && holder.holds() {
		m.fault(s, "mounted on %s while %s has it", n.name, holder.node.name)
	}
	s.image.used = true
	s.image.user, s.user, s.was = u, u, s.image
	path, _ := answer["Mountpoint"].(string)
	u.file, err = openLog(path)
	var last int64
	if err == nil {
		last, err = readLog(path)
	}
	switch {
	case err != nil && u.dead():
		m.note(s, "died as soon as it was mounted: %v", err)
		m.unmount(r, s)
	case err != nil:
		m.fault(s, "mounted on %s, and cannot be used: %v", n.name, err)
	case !slices.Contains(s.image.may, last):
		m.fault(s, "it holds %d; may be %v", last, s.image.may)
	}
}

// write writes a number, which is safe when it returns.
func (m *mix) write(r *rand.Rand, s *slot) {
	if s.user == nil || s.user.file == nil {
		return
	}
	n := m.last.Add(1)
	s.was.may = append(s.was.may, n)
	switch err := s.user.file.write(n); {
	case err == nil:
		s.was.may = []int64{n}
		m.note(s, "holds %d", n)
	case s.user.dead():
		m.note(s, "%d was not written, its mapping is dead: %v", n, err)
		m.unmount(r, s)
	case s.was.healthy():
		m.fault(s, "write %d on %s: %v", n, s.user.node.name, err)
	}
}

// unmount ends the container of a volume.
func (m *mix) unmount(r *rand.Rand, s *slot) {
	u := s.user
	if u == nil {
		return
	}
	u.ends.Store(true) // a plugin that starts again lets go of what no container has, before it is told to
	u.file.close()
	_, _ = m.ask(r, s, u.node, "Unmount", map[string]any{"Name": s.name, "ID": u.id}, s.unless())
	s.was.user, s.was.moved = nil, false
	s.user, s.was = nil, nil
}

// second has another container of the node use the volume for a moment.
func (m *mix) second(r *rand.Rand, s *slot) {
	if s.user == nil || s.user.dead() {
		return
	}
	n, id, other := s.user.node, fmt.Sprintf("d%d", r.Uint32()), s.taken()
	answer, err := m.ask(r, s, n, "Mount", map[string]any{"Name": s.name, "ID": id}, s.unless())
	if err != nil {
		return
	}
	path, _ := answer["Mountpoint"].(string)
	last, err := readLog(path)
	switch {
	case s.user.dead():
	case other && s.image == nil:
		m.fault(s, "there is no such volume, and yet it was mounted")
	case other && !slices.Contains(s.image.may, last):
		m.fault(s, "a container got another image than that of the name: it holds %d; may be %v", last, s.image.may)
	case !other && (err != nil || !slices.Contains(s.was.may, last)):
		m.fault(s, "a second container finds %d, %v; may be %v", last, err, s.was.may)
	}
	_, _ = m.ask(r, s, n, "Unmount", map[string]any{"Name": s.name, "ID": id}, s.unless())
}

// steal tries to mount on a second node what is mounted.
func (m *mix) steal(r *rand.Rand, s *slot) {
	if s.user == nil || s.taken() {
		return
	}
	n, id := m.other(r, s.user.node), fmt.Sprintf("e%d", r.Uint32())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := n.callWithin(ctx, "VolumeDriver.Mount", map[string]any{"Name": s.name, "ID": id})
	m.note(s, "a try to mount it on %s too: %v", n.name, err)
	if err != nil {
		return
	}
	if !s.user.dead() {
		m.fault(s, "mounted on %s while %s has it", n.name, s.user.node.name)
	}
	_, _ = m.ask(r, s, n, "Unmount", map[string]any{"Name": s.name, "ID": id}, s.unless())
}

// get looks at a volume: as long as it is healthy nothing is wrong with it.
func (m *mix) get(r *rand.Rand, s *slot) {
	n := m.node(r)
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		answer, err := n.call("VolumeDriver.Get", map[string]any{"Name": s.name})
		gone := err != nil && strings.Contains(err.Error(), "not found")
		v, _ := answer["Volume"].(map[string]any)
		status, _ := v["Status"].(map[string]any)
		var wrong string
		switch {
		case gone && s.image != nil && s.image.hurt != "id":
			m.fault(s, "get on %s: %v", n.name, err)
			return
		case gone != (s.image == nil) && (s.image == nil || s.image.healthy()):
			wrong = fmt.Sprintf("%v, %v", v, err)
		case s.image == nil || !s.image.healthy() || s.taken():
		case err != nil, status["error"] != nil, status["ceph"] != nil, status["id"] != s.image.id:
			wrong = fmt.Sprintf("%v, %v", v, err)
		}
		if wrong == "" {
			return
		}
		if time.Since(began) > time.Minute {
			m.fault(s, "get on %s, for a minute: %s", n.name, wrong)
			return
		}
	}
}

// list looks whether a volume is among the others.
func (m *mix) list(r *rand.Rand, s *slot) {
	n := m.node(r)
	for began := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		answer, err := n.call("VolumeDriver.List", map[string]any{})
		all, _ := answer["Volumes"].([]any)
		there := slices.ContainsFunc(all, func(v any) bool {
			is, _ := v.(map[string]any)
			return is["Name"] == s.name
		})
		if err == nil && there == (s.image != nil) || s.image != nil && !s.image.healthy() {
			return
		}
		if time.Since(began) > time.Minute {
			m.fault(s, "list on %s, for a minute: it is among %d: %v, %v", n.name, len(all), there, err)
			return
		}
	}
}
