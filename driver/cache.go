package driver

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// cache is the list of volumes that this node has seen, on disk. It is a
// cache and answers Get and List only while Ceph cannot be asked: an error
// would make dockerd forget its own records of the volumes.
type cache struct {
	mu      sync.Mutex
	file    string
	log     logrus.FieldLogger
	volumes map[string]time.Time // created, zero if not known
}

// openCache reads the cache. A missing or damaged one is an empty one: the
// next List fills it.
func openCache(file string, log logrus.FieldLogger) *cache {
	var volumes map[string]time.Time
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &volumes)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warnf("cache of known volumes: %v; starting an empty one", err)
	}
	if err != nil || volumes == nil {
		volumes = map[string]time.Time{}
	}
	return &cache{file: file, log: log, volumes: volumes}
}

func (r *cache) get(volume string) (created time.Time, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	created, known = r.volumes[volume]
	return created, known
}

func (r *cache) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.volumes))
}

func (r *cache) put(volume string, created time.Time) {
	r.change(func(v map[string]time.Time) { v[volume] = created })
}

// note makes a volume known of which no more is known than that it is there.
func (r *cache) note(volume string) {
	r.change(func(v map[string]time.Time) { noteIn(v, volume) })
}

func (r *cache) remove(volume string) {
	r.change(func(v map[string]time.Time) { delete(v, volume) })
}

// replace makes exactly these volumes known.
func (r *cache) replace(volumes []string) {
	r.change(func(v map[string]time.Time) {
		maps.DeleteFunc(v, func(name string, _ time.Time) bool { return !slices.Contains(volumes, name) })
		for _, name := range volumes {
			noteIn(v, name)
		}
	})
}

func noteIn(v map[string]time.Time, volume string) {
	if _, known := v[volume]; !known {
		v[volume] = time.Time{}
	}
}

// change writes the file if anything is different. A write that fails costs
// no more than what the cache is for.
func (r *cache) change(edit func(map[string]time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := maps.Clone(r.volumes)
	edit(r.volumes)
	if maps.EqualFunc(before, r.volumes, time.Time.Equal) {
		return
	}
	data, err := json.Marshal(r.volumes)
	if err == nil {
		err = replaceFile(r.file, data)
	}
	if err != nil {
		r.log.Warnf("cache of known volumes: %v", err)
	}
}

// replaceFile leaves the old content or the new one, whenever the power goes.
func replaceFile(path string, data []byte) error {
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
