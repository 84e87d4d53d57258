package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// whole tells whether a volume is one to work with: not hurt, and not half another's.
func (s *slot) whole() bool {
	return s.image != nil && s.image.used && s.image.healthy() && !s.taken() && (s.user == nil || !s.user.dead())
}

// snapshot makes one.
func (m *mix) snapshot(r *rand.Rand, s *slot) {
	if !s.whole() || len(s.image.snaps) > 2 {
		return
	}
	name := fmt.Sprintf("s%d", m.last.Add(1))
	holds := slices.Clone(s.image.may)
	_, err := m.ask(r, s, m.node(r), "Snapshot.Create", map[string]any{"volume": s.name, "snapshot": name}, func(text string, cut bool) verdict {
		if cut && strings.Contains(text, "already exists") {
			return done
		}
		return s.unless()(text, cut)
	})
	if err == nil {
		s.image.snaps[name] = holds
	}
}

// mayComeBack removes what has come back of snapshots whose making was cut short and that
// were removed since. The owner of the exclusive lock makes a snapshot for who asks for it,
// when all watchers have agreed, or some seconds later, as one of them was killed: also
// for one that was killed itself, after the snapshot of another request for it is gone.
func (m *mix) mayComeBack(s *slot) {
	for _, snap := range s.image.cut {
		if gone, err := m.admin.unsnap(s.image.id, snap); len(gone) > 0 || err != nil {
			m.note(s, "snapshot %s came back and is removed: %v", snap, err)
		}
	}
}

func (i *image) someSnapshot(r *rand.Rand) string {
	all := slices.Sorted(maps.Keys(i.snaps))
	return all[r.IntN(len(all))]
}

// unsnapshot removes one.
func (m *mix) unsnapshot(r *rand.Rand, s *slot) {
	if !s.whole() || len(s.image.snaps) == 0 {
		return
	}
	m.unsnapshotOf(r, s, s.image.someSnapshot(r))
}

func (m *mix) unsnapshotOf(r *rand.Rand, s *slot, name string) {
	_, err := m.ask(r, s, m.node(r), "Snapshot.Remove", map[string]any{"volume": s.name, "snapshot": name}, func(text string, cut bool) verdict {
		if cut && strings.Contains(text, "not found") {
			return done
		}
		return s.unless()(text, cut)
	})
	if err == nil {
		delete(s.image.snaps, name)
	}
}

// rollback goes back to one.
func (m *mix) rollback(r *rand.Rand, s *slot) {
	if !s.whole() || len(s.image.snaps) == 0 || s.image.user != nil {
		return
	}
	name := s.image.someSnapshot(r)
	_, err := m.ask(r, s, m.node(r), "Snapshot.Rollback", map[string]any{"volume": s.name, "snapshot": name}, s.unless())
	if err == nil {
		s.image.may = slices.Clone(s.image.snaps[name])
		m.note(s, "holds %v again", s.image.may)
	}
}

// remove removes a volume, or is told why not.
func (m *mix) remove(r *rand.Rand, s *slot) {
	if s.image == nil || s.user != nil || s.image.moved {
		return
	}
	n, began, i := m.node(r), time.Now(), s.image
	_, err := m.ask(r, s, n, "Remove", map[string]any{"Name": s.name}, func(text string, _ bool) verdict {
		if len(i.snaps) == 0 && strings.Contains(text, "snapshots") {
			m.mayComeBack(s)
		}
		if !i.healthy() || len(i.snaps) > 0 && strings.Contains(text, "snapshots") {
			return refused
		}
		return again
	})
	if err != nil {
		m.stands(s)
		return
	}
	if len(i.snaps) > 0 {
		m.fault(s, "removed with snapshots")
	}
	if now := m.admin.id(s.name); now != "" {
		m.fault(s, "it was removed, and its name still means image %s", now)
	}
	m.note(s, "what node %s removes is kept for %v", n.name, n.keep)
	_ = m.admin.repair("pending", s.name, i.id) // it was the name's
	s.image = nil
	if !i.used {
		return
	}
	there, err := m.admin.trashed(i.id)
	if !there && err == nil && (n.keep > time.Minute || time.Since(began) < n.keep) {
		m.note(s, "was image %s, which held %v", i.id, i.may)
		m.fault(s, "it was removed, and its image %s is not in the trash", i.id)
		return
	}
	m.discard(i, n.keep < time.Minute)
}

// discard notes what is in the trash now.
func (m *mix) discard(i *image, short bool) {
	i.hurt, i.short, i.trash = "", short, time.Now()
	i.unlisted.Store(false) // the trash knows its id
	m.trashMu.Lock()
	defer m.trashMu.Unlock()
	m.trash = append(m.trash, i)
}

// empty is an admin's rbd trash rm, when there is a lot in the trash: else what an hour
// removes would fill the cluster.
func (m *mix) empty(r *rand.Rand, _ *slot) {
	m.trashMu.Lock()
	much := len(m.trash) > 2*len(m.slots)
	m.trashMu.Unlock()
	if !much {
		return
	}
	i := m.fromTrash(r)
	gone, err := m.admin.unsnap(i.id, "")
	m.note(nil, "rbd snap purge --image-id %s: %v, %v", i.id, gone, err)
	for _, snap := range gone {
		delete(i.snaps, snap)
	}
	err = m.admin.delete(i.id)
	m.note(nil, "rbd trash rm %s: %v", i.id, err)
	if there, lookErr := m.admin.trashed(i.id); there || lookErr != nil { // it has copies, or is not whole
		m.discard(i, i.short)
	}
}

// fromTrash takes something out of the trash.
func (m *mix) fromTrash(r *rand.Rand) *image {
	m.trashMu.Lock()
	defer m.trashMu.Unlock()
	if len(m.trash) == 0 {
		return nil
	}
	at := r.IntN(len(m.trash))
	i := m.trash[at]
	m.trash = slices.Delete(m.trash, at, at+1)
	return i
}

// restore takes a volume out of the trash again.
func (m *mix) restore(r *rand.Rand, s *slot) {
	if s.image != nil || s.user != nil {
		return
	}
	i := m.fromTrash(r)
	if i == nil {
		return
	}
	err := m.admin.restore(i.id, s.name)
	if err != nil {
		there, lookErr := m.admin.trashed(i.id)
		switch {
		case lookErr != nil || there: // it is just being purged, or flattened
			m.note(s, "rbd trash restore %s: %v", i.id, err)
			m.discard(i, i.short)
		case !i.short:
			m.note(s, "was image %s, which held %v", i.id, i.may)
			m.fault(s, "image %s is not in the trash any more, where it was put %v ago: %v", i.id, time.Since(i.trash).Round(time.Second), err)
		}
		return
	}
	s.image = i
	i.name, i.theirs, i.short = s.name, false, false
	m.note(s, "restored from the trash: image %s", i.id)
}

// move is an admin's rbd mv, of what is mounted, too.
func (m *mix) move(r *rand.Rand, s *slot) {
	if !s.whole() {
		return
	}
	for _, at := range r.Perm(len(m.slots)) {
		to := m.slots[at]
		if to == s || !to.TryLock() {
			continue
		}
		if to.image != nil || to.user != nil {
			to.Unlock()
			continue
		}
		defer to.Unlock()
		i := s.image
		err := m.admin.rename(s.name, to.name)
		if m.admin.id(to.name) != i.id {
			m.note(s, "rbd mv to %s: %v", to.name, err)
			return
		}
		i.moved, i.name = i.user != nil, to.name
		s.image, to.image = nil, i
		m.note(s, "rbd mv to %s of image %s", to.name, i.id)
		m.note(to, "by rbd mv from %s", s.name)
		return
	}
}

// discardBy is an admin's rbd trash mv.
func (m *mix) discardBy(r *rand.Rand, s *slot) {
	if !s.whole() || s.user != nil {
		return
	}
	delay := time.Duration(r.IntN(2)) * time.Second
	err := m.admin.toTrash(s.name, delay)
	if there, lookErr := m.admin.trashed(s.image.id); !there || lookErr != nil {
		m.note(s, "rbd trash mv: %v", err)
		return
	}
	m.note(s, "rbd trash mv, to be kept for %v", delay)
	i := s.image
	s.image, i.theirs = nil, true
	m.discard(i, false)
}

// resize is an admin's rbd resize.
func (m *mix) resize(_ *rand.Rand, s *slot) {
	if !s.whole() {
		return
	}
	m.note(s, "rbd resize: %v", m.admin.resize(s.name, 4<<20, 64<<20))
}

// halfMade has a copy as librbd leaves it when it is killed right before it tells the
// parent of it. Docker asks for it again, and then the snapshot can go.
func (m *mix) halfMade(r *rand.Rand, s *slot) {
	if s.image != nil || s.user != nil {
		return
	}
	from := m.source(r, s, true)
	if from == nil {
		return
	}
	defer from.Unlock()
	snap := from.image.someSnapshot(r)
	options, holds := map[string]any{"from": from.name + "@" + snap}, from.image.snaps[snap]
	m.make(r, s, options, from.image, holds)
	if s.image == nil {
		return
	}
	err := m.admin.detach(from.image.id, s.image.id, snap)
	m.note(s, "the parent does not know it: %v", err)
	if err != nil {
		return
	}
	s.image = nil
	m.make(r, s, options, from.image, holds)
	m.unsnapshotOf(r, from, snap)
}

// late has the promise of a volume come back that was kept long ago: it means nothing.
func (m *mix) late(_ *rand.Rand, s *slot) {
	if s.whole() && s.image.user == nil && s.image.promise != nil && s.image.promised == s.name {
		m.note(s, "its promise comes back: %v", m.admin.putBack("docker_volume.pending."+s.name, s.image.promise))
		s.late = true
	}
}

// hurt damages a volume, or repairs one.
func (m *mix) hurt(r *rand.Rand, s *slot) {
	if s.image == nil || s.taken() {
		return
	}
	if s.image.hurt != "" {
		m.repair(s)
		return
	}
	kind := damages[r.IntN(len(damages))]
	if !s.whole() || s.image.user != nil {
		return
	}
	err := m.admin.damage(kind, s.name, s.image.id)
	if err == nil {
		s.image.hurt = kind
		s.image.unlisted.Store(kind == "directory")
	}
	m.note(s, "damage of its %s: %v", kind, err)
}

func (m *mix) repair(s *slot) {
	err := m.admin.repair(s.image.hurt, s.name, s.image.id)
	m.note(s, "repair of its %s: %v", s.image.hurt, err)
	if err == nil {
		s.image.hurt = ""
		s.image.unlisted.Store(false)
	}
}
