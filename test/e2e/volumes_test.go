package e2e

import (
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A volume from docker volume create to docker volume rm, as the user and as
// Ceph see it.
func TestVolume(t *testing.T) {
	story(t)
	name := volumeName(t)
	made := time.Now()
	args := []string{"volume", "create", "-d", "rbd", "-o", "size=64M", "-o", "fstype=ext4", "--label", "team=blue", name}
	equal(t, "docker volume create", docker(t, args...), name)
	equal(t, "docker volume create of the same", docker(t, args...), name)
	if !slices.Contains(images(t), name) {
		t.Fatal("the image is not in Ceph")
	}
	if !listed(t, name) || !listed(t, name, "label=team=blue") || listed(t, name, "label=team=red") {
		t.Error("docker volume ls does not list it by its label")
	}

	v := inspect(t, name)
	equal(t, "driver", v.Driver, pluginName)
	equal(t, "scope", v.Scope, "global")
	equal(t, "label", v.Labels["team"], "blue")
	equal(t, "option", v.Options["size"], "64M")
	equal(t, "mountpoint", v.Mountpoint, "")
	for key, want := range map[string]any{
		"pool": "rbd", "image": name, "size": "64MiB", "filesystem": "ext4 (made at the first mount)", "used": "0B",
		"node": nil, "device": nil, "created": v.CreatedAt,
	} {
		equal(t, "status "+key+" before the first mount", v.Status[key], want)
	}
	created, err := time.Parse(time.RFC3339, v.CreatedAt)
	if err != nil || created.Before(made.Add(-2*time.Second)) || created.After(time.Now().Add(2*time.Second)) {
		t.Errorf("created at %q (%v), made at %v", v.CreatedAt, err, made)
	}

	c := container(t, on(name))
	v = inspect(t, name)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "status node", v.Status["node"], any(host))
	equal(t, "status filesystem", v.Status["filesystem"], any("ext4"))
	device, _ := v.Status["device"].(string)
	contains(t, "status device", device, "/dev/loop")
	contains(t, "the container's mounts", in(t, c, "grep ' /data ' /proc/mounts"), device+" /data ext4")
	if used := v.Status["used"]; used == "0B" || used == nil {
		t.Errorf("status used is %v with a filesystem in it", used)
	}
	for _, key := range []string{"client", "since"} {
		if s, _ := v.Status[key].(string); s == "" {
			t.Errorf("status %s is missing", key)
		}
	}
	if !strings.HasSuffix(v.Mountpoint, "/volumes/"+name) {
		t.Errorf("mountpoint is %q", v.Mountpoint)
	}

	docker(t, "rm", "-f", c)
	v = inspect(t, name)
	for _, key := range []string{"node", "device", "client"} {
		equal(t, "status "+key+" after the container", v.Status[key], nil)
	}
	id, _ := v.Status["id"].(string)
	equal(t, "docker volume rm", docker(t, "volume", "rm", name), name)
	if listed(t, name) {
		t.Error("docker volume ls still lists it")
	}
	wait(t, 10*time.Second, func() error { return gone(t, name, id) })
	contains(t, "docker volume rm again", dockerFails(t, "volume", "rm", name), "no such volume")
}

// Filesystems with mount options of their own, written by one container and
// read by another after the volume was away from the node.
func TestFilesystems(t *testing.T) {
	for fstype, mountOptions := range map[string]string{
		"ext4":  "noatime,commit=30",
		"xfs":   "nodiratime,nouuid,logbsize=64k",
		"btrfs": "noatime,commit=45",
	} {
		t.Run(fstype, func(t *testing.T) {
			story(t)
			name := newVolume(t, "size=512M", "fstype="+fstype, "mountOptions="+mountOptions)
			mount := once(t, name, "dd if=/dev/urandom of=/data/file bs=1M count=20 2>/dev/null; "+
				"md5sum /data/file >/data/sum; grep ' /data ' /proc/mounts")
			contains(t, "mount", mount, " /data "+fstype+" ")
			contains(t, "mount", mount, strings.Split(mountOptions, ",")...)
			equal(t, "device between the containers", inspect(t, name).Status["device"], nil)
			contains(t, "second container", once(t, name, "md5sum -c /data/sum"), "/data/file: OK")
			equal(t, "filesystem", inspect(t, name).Status["filesystem"], any(fstype))
		})
	}
}

// Options as docker volume create, compose files and docker run --mount give
// them: strings all, a number is MiB.
func TestOptionsGiven(t *testing.T) {
	story(t)
	size := func(name string) any { return inspect(t, name).Status["size"] }

	equal(t, "size=2G", size(newVolume(t, "size=2G")), any("2GiB"))
	equal(t, "size=70", size(newVolume(t, "size=70")), any("70MiB"))
	equal(t, "no size", size(newVolume(t)), any("512MiB"))

	all := newVolume(t, "size=64M", "fstype=ext4", "mkfsOptions=-L tag -I 512", "mountOptions=noatime",
		"object-size=1M", "image-feature=layering,exclusive-lock", "pool=rbd", "uid=1000", "gid=2000", "mode=2770")
	equal(t, "owner and mode", once(t, all, "stat -c '%u %g %a' /data"), "1000 2000 2770")
	contains(t, "rbd info", ceph(t, "rbd", "info", all), "order 20", "exclusive-lock")
	if info := ceph(t, "rbd", "info", all); strings.Contains(info, "object-map") {
		t.Errorf("image-feature is not heeded: %s", info)
	}

	mounted := volumeName(t)
	out := docker(t, "run", "--rm", "--network=none", "--mount",
		"type=volume,src="+mounted+",dst=/data,volume-driver=rbd,volume-opt=size=64M,volume-opt=mode=0700,volume-label=from=run",
		image, "stat", "-c", "%a", "/data")
	equal(t, "mode by --mount", out, "700")
	equal(t, "size by --mount", size(mounted), any("64MiB"))
	if !listed(t, mounted, "label=from=run") {
		t.Error("the label by --mount is missing")
	}

	byDriver := volumeName(t)
	docker(t, "run", "--rm", "--network=none", "--volume-driver=rbd", "-v", byDriver+":/data", image, "touch", "/data/file")
	equal(t, "docker run --volume-driver", once(t, byDriver, "ls /data"), "file")
}

// Bad input gets one line that says what is allowed, and leaves nothing.
func TestBadInput(t *testing.T) {
	for _, bad := range []struct{ option, says string }{
		{"sise=1G", `option "sise": allowed are size, fstype,`},
		{"size=much", `option size="much": give a number with a unit`},
		{"size=-1", `option size="-1": give a number with a unit`},
		{"size=0", `option size="0": allowed is more than 0`},
		{"size=4M", `option size="4M": ext4 needs at least 8MiB`},
		{"fstype=ntfs", `option fstype="ntfs": allowed are btrfs, ext4, xfs`},
		{"mode=rwx", `option mode="rwx": allowed is an octal number`},
		{"uid=root", `option uid="root": allowed is a number`},
		{"mountOptions=remount,ro", `option mountOptions="remount,ro": remount is not an option of a filesystem`},
		{"object-size=3M", `option object-size="3M": allowed is a power of two`},
		{"data-pool=nowhere", `option data-pool="nowhere": there is no such pool`},
		{"pool=other", `option pool="other": this plugin's volumes are in pool "rbd"`},
		{"image-feature=journaling", `option image-feature="journaling"`},
	} {
		t.Run(bad.option, func(t *testing.T) {
			story(t)
			refused(t, bad.says, "-o", bad.option)
		})
	}
	t.Run("small xfs", func(t *testing.T) {
		story(t)
		refused(t, `option size="64M": xfs needs at least 300MiB`, "-o", "fstype=xfs", "-o", "size=64M")
	})
	t.Run("long name", func(t *testing.T) {
		story(t)
		contains(t, "docker volume create", dockerFails(t, "volume", "create", "-d", "rbd", strings.Repeat("x", 97)),
			"at most 96 are allowed")
	})
}

// refused creates a volume in vain.
func refused(t *testing.T, says string, options ...string) {
	t.Helper()
	name := volumeName(t)
	said := dockerFails(t, slices.Concat([]string{"volume", "create", "-d", "rbd"}, options, []string{name})...)
	contains(t, "docker volume create", said, "create volume "+name+": ", says)
	if strings.Count(said, says) != 1 {
		t.Errorf("said more than once: %s", said)
	}
	if listed(t, name) {
		t.Error("docker volume ls lists it")
	}
	if err := gone(t, name, ""); err != nil {
		t.Error(err)
	}
}

// A filesystem that cannot be made: the reason is told, and the volume can be
// removed and made anew.
func TestBadMkfsOptions(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M", "mkfsOptions=-b 17")
	c := unique(t)
	t.Cleanup(func() { docker(t, "rm", "-f", c) })
	said := dockerFails(t, "run", "--name="+c, "--network=none", on(name), image, "true")
	contains(t, "docker run", said, "mount volume "+name+": ", "mkfs.ext4", "17")
	docker(t, "rm", "-f", c)
	equal(t, "device after the failure", inspect(t, name).Status["device"], nil)
	docker(t, "volume", "rm", name)
	create(t, name, "size=64M")
	equal(t, "made anew", once(t, name, "echo ok >/data/file; cat /data/file"), "ok")
}

// An image that another tool has made, and that has no filesystem, is never
// formatted.
func TestForeignImage(t *testing.T) {
	story(t)
	name := volumeName(t)
	data := make([]byte, 16<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	content := sha256.Sum256(data)
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ceph(t, "rbd", "import", "--no-progress", file, name)
	c := unique(t)
	t.Cleanup(func() { docker(t, "rm", "-f", c) })
	for range 2 {
		said := dockerFails(t, "run", "--name="+c, "--network=none", on(name), image, "sh", "-c", "echo >/data/file")
		contains(t, "docker run", said, "mount volume "+name+": ", "no filesystem is recognised",
			"it is not formatted: make a filesystem on it yourself, or remove it")
		docker(t, "rm", "-f", c)
	}
	v := inspect(t, name)
	equal(t, "status filesystem", v.Status["filesystem"], any("not made by this plugin, mounted as it is"))
	equal(t, "status node", v.Status["node"], nil)

	export := filepath.Join(t.TempDir(), "export")
	ceph(t, "rbd", "export", "--no-progress", name, export)
	now, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(now) != content {
		t.Fatal("the image's content has changed")
	}

	empty := volumeName(t)
	ceph(t, "rbd", "create", "--size=16M", empty)
	contains(t, "docker run", dockerFails(t, "run", "--name="+c, "--network=none", on(empty), image, "true"), "it is not formatted")
	docker(t, "rm", "-f", c)
	if used := inspect(t, empty).Status["used"]; used != "0B" {
		t.Errorf("%v were written to an empty image", used)
	}
}

// An image that another tool has made with a filesystem is a volume.
func TestForeignFilesystem(t *testing.T) {
	story(t)
	name := volumeName(t)
	tree, file := t.TempDir(), filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte("from elsewhere\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", tree, file, "64M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	ceph(t, "rbd", "import", "--no-progress", file, name)
	if !listed(t, name) {
		t.Fatal("docker volume ls does not list it")
	}
	equal(t, "content", once(t, name, "cat /data/file; echo more >/data/new"), "from elsewhere")
	equal(t, "content", once(t, name, "cat /data/new"), "more")
}
