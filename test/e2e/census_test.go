package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// census counts what there is of volumes, on this machine and in Ceph.
func census() (map[string]int, error) {
	count := map[string]int{}
	pid, err := pluginPID()
	if err != nil {
		return nil, err
	}
	directory := filepath.Join(engine, "data", "plugins", plugin, "propagated-mount", "volumes")
	for view, file := range map[string]string{"host": "/proc/self/mountinfo", "plugin": fmt.Sprintf("/proc/%d/mountinfo", pid)} {
		mounts, err := mountinfo(file)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			switch {
			case m.fstype == "fuse.docker-volume-rbd" && (view == "plugin" || strings.Contains(m.source, prefix)):
				count["FUSE mounts that the "+view+" sees"]++
			case filepath.Base(m.point) == ".probe": // now and then
			case strings.HasPrefix(m.point, directory+"/"), view == "plugin" && strings.HasPrefix(m.point, "/var/lib/docker-volume-rbd/volumes/"):
				count["mounted volumes that the "+view+" sees"]++
			}
		}
	}
	for what, pattern := range map[string]string{
		"mount points": filepath.Join(directory, "[^.]*"),
		"files and mount points of the userspace mapper": fmt.Sprintf("/proc/%d/root/run/docker-volume-rbd/*", pid),
	} {
		entries, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		count[what] = len(entries)
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, loop := range loops {
		// As the plugin sees the path, so that it is no other's; one that has just gone cannot be read.
		if file, _ := os.ReadFile(loop); strings.HasPrefix(string(file), "/run/docker-volume-rbd/") {
			count["loop devices"]++
		}
	}
	processes, err2 := pluginProcesses()
	count["processes"] = len(processes)
	objects, err3 := onCluster("rados", "ls")
	for object := range strings.FieldsSeq(objects) {
		kind, _, _ := strings.Cut(object, ".")
		switch {
		case object == "docker_volume.clock": // one for all, from the first removal on
		case strings.HasPrefix(object, "docker_volume."):
			count["records in Ceph"]++
		case kind == "rbd_header":
			watchers, err := onCluster("rados", "listwatchers", object)
			if err != nil {
				return nil, err
			}
			count["images"]++
			count["watchers"] += len(strings.Fields(watchers))
		case kind == "rbd_data" || kind == "rbd_object_map" || kind == "rbd_id":
			count["other objects of images"]++
		}
	}
	return count, errors.Join(err, err2, err3)
}

// compare tells where two censuses differ.
func compare(before, after map[string]int) error {
	all := maps.Clone(before)
	maps.Copy(all, after)
	var errs []error
	for _, what := range slices.Sorted(maps.Keys(all)) {
		if before[what] != after[what] {
			errs = append(errs, fmt.Errorf("%s: %d before all, %d after it", what, before[what], after[what]))
		}
	}
	return errors.Join(errs...)
}

// nothingLeft compares with a census of before.
func nothingLeft(before map[string]int) error {
	now, err := census()
	return errors.Join(err, compare(before, now))
}
