package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two containers share a volume: the end of one is not the end of the mount,
// and nobody can remove what somebody uses.
func TestTwoContainers(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	first := container(t, on(name))
	second := container(t, on(name))
	write(t, first, "one")
	equal(t, "read by the second", in(t, second, "cat /data/file"), "one")

	said := dockerFails(t, "volume", "rm", name)
	contains(t, "docker volume rm", said, "volume is in use")

	docker(t, "stop", first)
	docker(t, "rm", first)
	equal(t, "read after the first has gone", in(t, second, "cat /data/file"), "one")
	write(t, second, "two")
	contains(t, "docker volume rm", dockerFails(t, "volume", "rm", name), "volume is in use")
	equal(t, "a third one", once(t, name, "cat /data/file"), "two")
	write(t, second, "three")

	docker(t, "rm", "-f", second)
	equal(t, "status device", inspect(t, name).Status["device"], nil)
	docker(t, "volume", "rm", name)
}

// docker cp mounts and unmounts once more with the running container's own id
// (moby 47964): it must not take the volume from under it.
func TestCopy(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	c := container(t, on(name))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("copied in\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		docker(t, "cp", filepath.Join(dir, "in"), c+":/data/in")
		equal(t, "in the container", in(t, c, "cat /data/in; echo written >/data/out"), "copied in")
		docker(t, "cp", c+":/data/out", filepath.Join(dir, "out"))
		out, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "copied out", string(out), "written\n")
	}
	in(t, c, "echo still here >/data/last")
	docker(t, "stop", c)
	equal(t, "status device after the container has stopped", inspect(t, name).Status["device"], nil)
	docker(t, "cp", c+":/data/last", filepath.Join(dir, "last")) // of a stopped one, too
	equal(t, "in a new container", once(t, name, "cat /data/last /data/in"), "still here\ncopied in")
}

// Docker copies an image's content into a fresh volume, if it is empty: a
// lost+found would keep it from doing so.
func TestCopyUp(t *testing.T) {
	story(t)
	dir := filepath.Join(t.TempDir(), "content")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the image\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	maker, withContent := unique(t), unique(t)
	t.Cleanup(func() { docker(t, "image", "rm", "-f", withContent) })
	docker(t, "create", "--name="+maker, image)
	t.Cleanup(func() { docker(t, "rm", "-f", maker) })
	docker(t, "cp", dir, maker+":/data")
	docker(t, "commit", maker, withContent)

	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			story(t)
			name := newVolume(t, "fstype="+fstype)
			run := func(script string) string {
				return docker(t, "run", "--rm", "--network=none", on(name), withContent, "sh", "-ec", script)
			}
			equal(t, "first container", run("cat /data/file; ls -A /data; echo changed >/data/file"), "of the image\nfile")
			equal(t, "second container", run("cat /data/file"), "changed")
		})
	}
	t.Run("owner", func(t *testing.T) {
		story(t)
		name := newVolume(t, "size=64M", "uid=1000", "gid=2000", "mode=0750")
		equal(t, "the volume's root", once(t, name, "stat -c '%u %g %a' /data"), "1000 2000 750")
		equal(t, "as its owner", docker(t, "run", "--rm", "--network=none", "--user=1000:2000", on(name), image,
			"sh", "-ec", "echo mine >/data/file; cat /data/file"), "mine")
	})
}

// A container is restarted; what it wrote is there.
func TestContainerRestart(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	c := container(t, on(name))
	for i := range 3 {
		in(t, c, "echo line >>/data/file") // no fsync: unmounting writes it
		docker(t, "restart", c)
		equal(t, "lines", strings.Count(in(t, c, "cat /data/file"), "line"), i+1)
	}
	docker(t, "kill", c)
	equal(t, "status device after docker kill", inspect(t, name).Status["device"], nil)
	docker(t, "start", c)
	equal(t, "lines", strings.Count(in(t, c, "cat /data/file"), "line"), 3)
}

// Many containers on many volumes at the same time.
func TestManyAtOnce(t *testing.T) {
	story(t)
	const volumes, containers = 4, 3
	t.Cleanup(func() {
		// The stories below have ended: nothing may be mounted any more.
		if err := noMounts(filepath.Join(engine, "data", "plugins", plugin, "propagated-mount", "volumes")); err != nil {
			t.Error(err)
		}
	})
	t.Run("all", func(t *testing.T) {
		for range volumes {
			name := newVolume(t, "size=32M")
			for range containers {
				t.Run("one", func(t *testing.T) {
					t.Parallel()
					for range 3 {
						equal(t, "lines", once(t, name, "echo $HOSTNAME >/data/$HOSTNAME; wc -l </data/$HOSTNAME"), "1")
					}
				})
			}
		}
	})
}
