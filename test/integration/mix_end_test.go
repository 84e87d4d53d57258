package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// check looks, when all is quiet, whether everything is as it was acknowledged.
func (m *mix) check(r *rand.Rand) {
	began := time.Now()
	m.death.every = 0
	m.note(nil, "the end: everything is looked at")
	for _, s := range m.slots {
		m.unmount(r, s)
	}
	for _, s := range m.slots {
		if s.image != nil && s.image.hurt != "" {
			m.repair(s)
		}
	}
	volumes, snaps, trashed := 0, 0, 0
	for _, s := range m.slots {
		if m.failed() {
			return
		}
		m.get(r, s)
		m.list(r, s)
		if s.image == nil {
			continue
		}
		m.mount(r, s)
		m.unmount(r, s)
		volumes++
	}
	spare := &slot{name: "spare"}
	for _, s := range m.slots {
		if s.image == nil {
			continue
		}
		for _, snap := range slices.Sorted(maps.Keys(s.image.snaps)) {
			m.make(r, spare, map[string]any{"from": s.name + "@" + snap}, s.image, s.image.snaps[snap])
			if snaps++; !m.lookAndRemove(r, spare) {
				return
			}
		}
	}
	for end := time.Now().Add(m.waits); len(m.trash) > 0 && time.Now().Before(end); {
		m.restore(r, spare)
		if m.failed() {
			return
		}
		if spare.image == nil { // it is just being purged
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for n := len(spare.image.snaps); n > 0; n-- { // an admin put it there as it was
			m.unsnapshot(r, spare)
		}
		if trashed++; !m.lookAndRemove(r, spare) {
			return
		}
		if m.trash = slices.DeleteFunc(m.trash, func(i *image) bool { return i.name == spare.name }); m.failed() {
			return
		}
	}
	m.nothingLeft()
	m.t.Logf("%d volumes, %d snapshots, %d from the trash were looked at in %v", volumes, snaps, trashed, time.Since(began).Round(time.Second))
}

// lookAndRemove mounts a volume, which looks at what it holds, and removes it.
func (m *mix) lookAndRemove(r *rand.Rand, s *slot) bool {
	m.mount(r, s)
	m.unmount(r, s)
	m.remove(r, s)
	return !m.failed()
}

// nothingLeft waits until nothing is there any more of mounts that have ended.
func (m *mix) nothingLeft() {
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var left []string
		for _, n := range m.nodes {
			for _, what := range n.leftovers(m.t) {
				left = append(left, n.name+": "+what)
			}
		}
		guards, err := m.admin.objects("docker_volume.guard.")
		if err != nil {
			left = append(left, err.Error())
		}
		promises, err := m.admin.objects("docker_volume.pending.")
		if err != nil {
			left = append(left, err.Error())
		}
		for _, s := range m.slots {
			if s.image == nil {
				continue
			}
			if slices.Contains(guards, s.image.id) {
				left = append(left, fmt.Sprintf("a guard of %s (%s)", s.name, s.image.id))
			}
			// What came there in another way left that of an image of before as it was.
			if slices.Contains(promises, s.name) && s.image.promised == s.name && !s.late {
				left = append(left, "a promise of "+s.name)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Since(began) > time.Minute {
			m.fault(nil, "left behind: %s", strings.Join(left, "; "))
			return
		}
	}
}
