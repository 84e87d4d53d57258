package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Volumes of other plugins, each made as that plugin makes it, are volumes like
// others: the images are theirs, and nothing is converted. docs/moving.md is about
// them.
func TestAdoptedVolumesWorkAsTheyAre(t *testing.T) {
	var (
		layering = []string{"layering"}
		ext4     = []string{"mkfs.ext4", "-q"}
		// From xfsprogs 5.19 on, mkfs makes none below 300 MiB. Those of robkaandorp's
		// plugin have 200 unless somebody asked for more, and the older ones are there.
		smallXFS = []string{"mkfs.xfs", "-q", "--unsupported"}
		csiMeta  = map[string]string{
			"csi.storage.k8s.io/pv/name":       "pvc-6f5e1c1a-7f44-4b7c-9d5c-0d3ab5a4c6e2",
			"csi.storage.k8s.io/pvc/name":      "data-db-0",
			"csi.storage.k8s.io/pvc/namespace": "default",
			"csi.ceph.com/cluster/name":        "home",
		}
		rexrayMeta = map[string]string{"docker_volume.subdirectory": "data"} // as docs/moving.md says
	)
	for maker, theirs := range map[string]foreign{
		"wetopi":              {size: 512, mkfs: append(ext4, "-O", "mmp")},
		"vpaprots":            {size: 1 << 10, mkfs: append(ext4, "-O", "mmp")},
		"robkaandorp":         {size: 200, mkfs: smallXFS},
		"robkaandorp, ext4":   {size: 200, mkfs: ext4},
		"yp-engineering":      {size: 2 << 10, mkfs: []string{"mkfs.xfs", "-q"}},
		"yp-engineering, old": {size: 1 << 10, mkfs: []string{"mkfs.xfs", "-q"}, features: layering},
		"rexray, ext4":        {size: 1 << 10, mkfs: append(ext4, "-F"), features: layering, directory: "data", meta: rexrayMeta},
		"rexray, xfs":         {size: 1 << 10, mkfs: []string{"mkfs.xfs", "-q", "-f"}, features: layering, directory: "data", meta: rexrayMeta},
		"ceph-csi, ext4": {
			name: csiName, size: 1 << 10, features: layering, meta: csiMeta,
			mkfs: append(ext4, "-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1"),
		},
		"ceph-csi, xfs": {
			name: csiName, size: 1 << 10, features: layering, meta: csiMeta,
			mkfs: []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=0"},
		},
	} {
		t.Run(maker, func(t *testing.T) {
			t.Parallel()
			story(t)
			name := theirs.make(t)
			adopted(t, theirs, name)
			copied(t, theirs, name)

			id, _ := inspect(t, name).Status["id"].(string)
			equal(t, "docker volume rm", docker(t, "volume", "rm", name), name)
			if listed(t, name) {
				t.Error("docker volume ls still lists it")
			}
			wait(t, 10*time.Second, func() error { return gone(t, name, id) })
		})
	}
}

// adopted reads and writes a volume that was never here before.
func adopted(t *testing.T, f foreign, name string) {
	t.Helper()
	if !listed(t, name) {
		t.Fatal("docker volume ls does not list it")
	}
	v := inspect(t, name)
	equal(t, "driver", v.Driver, pluginName)
	for key, want := range map[string]any{
		"filesystem": "not made by this plugin, mounted as it is", "size": sizeText(f.size), "node": nil, "parent": nil,
	} {
		equal(t, "status "+key+" before the first mount", v.Status[key], want)
	}
	if features, _ := v.Status["features"].(string); f.features != nil && features != strings.Join(f.features, ",") {
		t.Errorf("status features before the first mount: %q", features)
	}

	equal(t, "content", once(t, name, "cat /data/file; ls -A /data | grep -v '^lost+found$'; echo more >/data/new"), "from elsewhere\nfile")
	c := container(t, on(name))
	equal(t, "content in the second container", in(t, c, "cat /data/file /data/new"), "from elsewhere\nmore")
	contains(t, "the container's mounts", in(t, c, "grep ' /data ' /proc/mounts"), " /data "+f.fstype()+" rw,")
	v = inspect(t, name)
	if want := filepath.Join("/volumes", name, f.directory); !strings.HasSuffix(v.Mountpoint, want) {
		t.Errorf("mountpoint is %q, not %q", v.Mountpoint, want)
	}
	contains(t, "status features while it is mounted", v.Status["features"].(string), "exclusive-lock")
	equal(t, "in another container beside it", once(t, name, "cat /data/new"), "more")
	docker(t, "rm", "-f", c)
	equal(t, "status node after the container", inspect(t, name).Status["node"], nil)
	for key, value := range f.meta {
		equal(t, "image-meta "+key, ceph(t, "rbd", "image-meta", "get", name, key), value)
	}
}

// copied makes a copy, and removes it.
func copied(t *testing.T, f foreign, name string) {
	t.Helper()
	twin := newVolume(t, "from="+name)
	equal(t, "content of the copy", once(t, twin, "cat /data/file /data/new; echo copied >/data/new"), "from elsewhere\nmore")
	equal(t, "content of the copy", once(t, twin, "cat /data/new"), "copied")
	equal(t, "content of the original", once(t, name, "cat /data/new"), "more")
	equal(t, "status filesystem of the copy", inspect(t, twin).Status["filesystem"], any(f.fstype()))
	docker(t, "volume", "rm", twin)
	// As long as the manager deletes the copy's data, the original's must stay.
	wait(t, 30*time.Second, func() error {
		if children := ceph(t, "rbd", "children", "--all", name); children != "" {
			return fmt.Errorf("%s still has the child %s", name, children)
		}
		return nil
	})
}

// A directory that is none, or that leads out of the volume, is no volume: one
// line says so, and nothing stays mounted. Once it is mended, the volume works.
func TestAdoptedVolumeWithAWrongDirectoryIsRefused(t *testing.T) {
	story(t)
	rexray := foreign{size: 64, mkfs: []string{"mkfs.ext4", "-q"}, features: []string{"layering"}, directory: "data", links: map[string]string{
		"etc": "/etc", "up": "..", "alias": "data",
	}}
	name := rexray.make(t)
	set := func(directory string) {
		ceph(t, "rbd", "image-meta", "set", name, "docker_volume.subdirectory", directory)
	}
	for directory, says := range map[string]string{
		"missing":  "the volume has no directory missing",
		"etc":      "the volume has no directory etc: it is a symbolic link",
		"up":       "the volume has no directory up: it is a symbolic link",
		"alias":    "the volume has no directory alias: it is a symbolic link",
		"beside":   "the volume has no directory beside: it is a file",
		"data/sub": `docker_volume.subdirectory of its image is "data/sub": give the name of a directory`,
		"/etc":     `docker_volume.subdirectory of its image is "/etc": give the name of a directory`,
		"..":       `docker_volume.subdirectory of its image is "..": give the name of a directory`,
	} {
		t.Run(directory, func(t *testing.T) {
			set(directory)
			said, err := request("Mount", map[string]any{"Name": name, "ID": "1"})
			if err != nil || strings.Contains(said, "\n") || strings.Count(said, says) != 1 || !strings.HasPrefix(said, "mount volume "+name+": ") {
				t.Errorf("Mount: answer %q, %v", said, err)
			}
			c := unique(t)
			t.Cleanup(func() { docker(t, "rm", "-f", c) })
			contains(t, "docker run", dockerFails(t, "run", "--name="+c, "--network=none", on(name), image, "true"), said)
			if err := notMounted(name); err != nil {
				t.Error(err)
			}
			for _, key := range []string{"node", "device"} {
				equal(t, "status "+key, inspect(t, name).Status[key], nil)
			}
		})
	}
	set("data")
	equal(t, "with the right directory", once(t, name, "cat /data/file"), "from elsewhere")
	ceph(t, "rbd", "image-meta", "remove", name, "docker_volume.subdirectory")
	equal(t, "without any", once(t, name, "cat /data/data/file /data/beside"), "from elsewhere\nbeside")
}

// yp-engineering's plugin locks an image while it is mounted, with a lock that
// outlives its node and bears the name of Ceph's own: whoever writes would wait for
// ever. It is not ours to break, so a line says how.
func TestAdoptedVolumeWithALockThatWasLeftNamesTheCure(t *testing.T) {
	for maker, theirs := range map[string]foreign{
		"layering only":    {size: 64, mkfs: []string{"mkfs.ext4", "-q"}, features: []string{"layering"}},
		"default features": {size: 64, mkfs: []string{"mkfs.ext4", "-q"}},
	} {
		t.Run(maker, func(t *testing.T) {
			t.Parallel()
			story(t)
			name := theirs.make(t)
			ceph(t, "rbd", "lock", "add", name, "node1")
			c := unique(t)
			t.Cleanup(func() { docker(t, "rm", "-f", c) })
			var said string
			bounded(t, 10*time.Second, "the refusal", func() {
				said = dockerFails(t, "run", "--name="+c, "--network=none", on(name), image, "true")
			})
			contains(t, "docker run", said, "mount volume "+name+": ", "in use", `as "node1"`)
			orFail(t, notMounted(name))
			docker(t, "rm", "-f", c)
			contains(t, "docker volume rm", dockerFails(t, "volume", "rm", name), "rbd lock rm")

			_, cure, _ := strings.Cut(said, "rbd lock rm ")
			ceph(t, "rbd", append([]string{"lock", "rm"}, strings.Fields(strings.ReplaceAll(strings.TrimSuffix(cure, "."), "'", ""))...)...)
			equal(t, "after the cure", once(t, name, "cat /data/file"), "from elsewhere")
		})
	}
}

// notMounted fails if the volume, or a part of it, is mounted on the host.
func notMounted(volume string) error {
	mounts, err := mountinfo("/proc/self/mountinfo")
	for _, m := range mounts {
		if slices.Contains(strings.Split(m.point, "/"), volume) {
			return fmt.Errorf("%s is mounted", m.point)
		}
	}
	return err
}

// foreign is an image as another tool makes it, with one file.
type foreign struct {
	name      func(t *testing.T) string // nil = like others of the test
	size      int                       // MiB
	mkfs      []string
	features  []string          // nil = those of ceph.conf
	directory string            // where in the filesystem the data is
	links     map[string]string // beside that: symbolic links, and a file
	meta      map[string]string
}

func (f foreign) fstype() string { return strings.TrimPrefix(f.mkfs[0], "mkfs.") }

// make makes the filesystem in a file, as there may be no kernel's client here,
// and imports that.
func (f foreign) make(t *testing.T) string {
	t.Helper()
	name := unique(t)
	if f.name != nil {
		name = f.name(t)
	}
	leaveNothing(t, name)
	tree, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	data := filepath.Join(tree, f.directory)
	orFail(t, os.MkdirAll(data, 0o755))
	orFail(t, os.WriteFile(filepath.Join(data, "file"), []byte("from elsewhere\n"), 0o600))
	for link, to := range f.links {
		orFail(t, os.Symlink(to, filepath.Join(tree, link)))
		orFail(t, os.WriteFile(filepath.Join(tree, "beside"), []byte("beside\n"), 0o600))
	}
	orFail(t, os.WriteFile(file, nil, 0o600))
	orFail(t, os.Truncate(file, int64(f.size)<<20))
	args := append(slices.Clone(f.mkfs[1:]), "-d", tree, file)
	if f.fstype() == "xfs" {
		args = append(slices.Clone(f.mkfs[1:]), "-p", f.prototype(t, filepath.Join(data, "file")), file)
	}
	_, err := command(limit, f.mkfs[0], args...)
	orFail(t, err)

	args = []string{"import", "--no-progress"}
	for _, feature := range f.features {
		args = append(args, "--image-feature", feature)
	}
	ceph(t, "rbd", append(args, file, name)...)
	for key, value := range f.meta {
		ceph(t, "rbd", "image-meta", "set", name, key, value)
	}
	return name
}

// prototype tells mkfs.xfs what is to be in the filesystem; see its -p.
func (f foreign) prototype(t *testing.T, file string) string {
	t.Helper()
	content := "file ---600 0 0 " + file + "\n$\n"
	if f.directory != "" {
		content = f.directory + " d--700 0 0\n" + content + "$\n"
	}
	path := filepath.Join(t.TempDir(), "prototype")
	orFail(t, os.WriteFile(path, []byte("none\n0 0\nd--755 0 0\n"+content), 0o600))
	return path
}

// csiName is a name that ceph-csi gives: with a UUID.
func csiName(t *testing.T) string {
	t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	orFail(t, err)
	return "csi-vol-" + strings.TrimSpace(string(id))
}

func sizeText(mib int) string {
	if mib%1024 == 0 {
		return fmt.Sprintf("%dGiB", mib/1024)
	}
	return fmt.Sprintf("%dMiB", mib)
}

func orFail(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
