package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// image is what is known of one image, whatever its name is. What has been
// acknowledged must stay true; what was cut short may be, or may not.
type image struct {
	id   string
	name string // the last one
	// may are the numbers that may be the last on it: the one that was synced last, and
	// those whose write has failed since. 0 is none.
	may    []int64
	used   bool               // it was mounted, so that something may be lost
	snaps  map[string][]int64 // by name: the numbers that may be the last on each
	cut    []string           // snapshots whose making was cut short: see mayComeBack
	user   *user              // who has it mounted
	hurt   string             // the damage that was done to it, until it is repaired
	moved  bool               // by an admin, while it was mounted
	theirs bool               // an admin has put it into the trash
	parent *image             // of which it is a copy, as far as it has not been made independent

	promise  []byte // of its first mount, as a record
	promised string // the name that it was made with

	// librbd opens a parent by its id, and so no copy of an image that rbd_directory has lost.
	unlisted atomic.Bool
	short    bool      // what it has in the trash is not kept for long
	trash    time.Time // since when it is there
}

// healthy tells whether nothing was done to an image that a refusal could come from.
func (i *image) healthy() bool {
	for p := i.parent; p != nil; p = p.parent {
		if p.unlisted.Load() {
			return false
		}
	}
	return i.hurt == "" && !i.moved
}

// user is a container that has an image mounted: it holds a file open there.
type user struct {
	node   *mixNode
	id     string
	deaths int64 // of the node's, before the mount began
	file   *openFile
	ends   atomic.Bool // it is about to be unmounted, or has been
}

// holds tells whether nobody else may have its image.
func (u *user) holds() bool { return !u.dead() && !u.ends.Load() }

// dead tells whether the image servers of its node have died since it was begun: its
// I/O fails then, and another node may have the volume.
func (u *user) dead() bool { return u.node.deaths.Load() != u.deaths }

// slot is a volume's name. Its lock makes an order of what is done to it.
type slot struct {
	sync.Mutex
	name  string
	image *image // nil = there is none
	user  *user  // of the mount under this name, be it of an image that had it before
	was   *image // which that is
	late  bool   // a promise has come back
}

// taken tells whether the name is still used for a mount of an image of before.
func (s *slot) taken() bool { return s.user != nil && s.was != s.image }

// entry is a line of the history.
type entry struct {
	at   time.Time
	slot string // "" = everybody's
	id   string
	text string
}

// history remembers what was done, and what came of it.
type history struct {
	mu     sync.Mutex
	began  time.Time
	lines  []entry
	faults []string
	found  chan struct{} // closed with the first fault
}

// note writes a line about a slot, or about what concerns them all.
func (h *history) note(s *slot, format string, args ...any) {
	e := entry{at: time.Now(), text: fmt.Sprintf(format, args...)}
	if s != nil {
		e.slot = s.name
		if s.image != nil {
			e.id = s.image.id
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, e)
}

// shown is how much of the history of a volume goes with a fault, and as much of that of the
// images that it names.
const shown = 30

var imageID = regexp.MustCompile(`\b[0-9a-f]{8,16}\b`)

// fault notes that something is not as it must be, with what happened to the volume.
func (h *history) fault(s *slot, format string, args ...any) {
	h.note(s, "FAULT: "+format, args...)
	h.mu.Lock()
	defer h.mu.Unlock()
	name, id := "", ""
	if s != nil {
		name = s.name
		if s.image != nil {
			id = s.image.id
		}
	}
	text := fmt.Sprintf(format, args...)
	named := imageID.FindAllString(text, -1)
	var ofName, ofImages []string
	for _, e := range slices.Backward(h.lines) {
		line := fmt.Sprintf("  %8.3fs %s (%s) %s", e.at.Sub(h.began).Seconds(), e.slot, e.id, e.text)
		about := func(id string) bool { return e.id == id || strings.Contains(e.text, id) }
		switch {
		case slices.ContainsFunc(named, about):
			ofImages = append(ofImages, line)
		case e.slot == "" || e.slot == name || id != "" && e.id == id || strings.Contains(e.text, " "+name+" "):
			ofName = append(ofName, line)
		}
	}
	ofName, ofImages = ofName[:min(shown, len(ofName))], ofImages[:min(shown, len(ofImages))]
	slices.Reverse(ofName)
	slices.Reverse(ofImages)
	lines := slices.Concat(ofName, []string{"  and to the images:"}, ofImages)
	h.faults = append(h.faults, fmt.Sprintf("volume %s: %s\n%s", name, text, strings.Join(lines, "\n")))
	if len(h.faults) == 1 {
		close(h.found)
	}
}

// save writes all of it.
func (h *history) save(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var text strings.Builder
	for _, e := range h.lines {
		fmt.Fprintf(&text, "%8.3fs %s (%s) %s\n", e.at.Sub(h.began).Seconds(), e.slot, e.id, e.text)
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

func (h *history) failed() bool {
	select {
	case <-h.found:
		return true
	default:
		return false
	}
}
