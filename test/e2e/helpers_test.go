package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// docker runs the client and returns what it prints.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dockerFails runs the client, which must fail, and returns the line that says
// why. The client adds lines of its own.
func dockerFails(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err == nil {
		t.Fatalf("docker %s: no error, but %q", strings.Join(args, " "), out)
	}
	_, said, _ := strings.Cut(err.Error(), "Error response from daemon: ")
	said, _, _ = strings.Cut(said, "\n")
	if said == "" {
		t.Fatal(err)
	}
	return said
}

// ceph runs one of Ceph's tools on the pool.
func ceph(t *testing.T, tool string, args ...string) string {
	t.Helper()
	out, err := onCluster(tool, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var names atomic.Int32

// unique makes a name for a volume, a container or an image.
func unique(t *testing.T) string {
	story, _, _ := strings.Cut(strings.TrimPrefix(t.Name(), "Test"), "/")
	return fmt.Sprintf("%s-%s-%d", prefix, strings.ToLower(story), names.Add(1))
}

// story shows the plugin's log of a test that fails.
func story(t *testing.T) {
	from := logSize()
	t.Cleanup(func() {
		if t.Failed() {
			dumpLog(t.Output(), from)
		}
	})
}

// volumeName makes the name of a volume that is removed, and must be gone
// altogether, after the test.
func volumeName(t *testing.T) string {
	t.Helper()
	name := unique(t)
	leaveNothing(t, name)
	return name
}

func leaveNothing(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		id := ""
		if slices.Contains(images(t), name) {
			id, _ = inspect(t, name).Status["id"].(string)
			docker(t, "volume", "rm", name)
		}
		wait(t, 10*time.Second, func() error { return gone(t, name, id) })
	})
}

// newVolume makes a volume with docker volume create.
func newVolume(t *testing.T, options ...string) string {
	t.Helper()
	name := volumeName(t)
	create(t, name, options...)
	return name
}

func create(t *testing.T, name string, options ...string) {
	t.Helper()
	args := []string{"volume", "create", "-d", "rbd"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	if out := docker(t, append(args, name)...); out != name {
		t.Fatalf("docker volume create says %q, not %q", out, name)
	}
}

// gone tells what is left of a volume; its image's id may not be known.
func gone(t *testing.T, name, id string) error {
	t.Helper()
	if slices.Contains(images(t), name) {
		return fmt.Errorf("image %s is still there", name)
	}
	for object := range strings.FieldsSeq(ceph(t, "rados", "ls")) {
		if object == "docker_volume.pending."+name || id != "" && object == "docker_volume.guard."+id {
			return fmt.Errorf("object %s of volume %s is still there", object, name)
		}
	}
	mounts, err := mountinfo("/proc/self/mountinfo")
	for _, m := range mounts {
		if filepath.Base(m.point) == name {
			return fmt.Errorf("%s is still mounted", m.point)
		}
	}
	if err != nil || id == "" {
		return err
	}
	return noLoop(id)
}

// noLoop fails if a loop device is on the image of this id.
func noLoop(id string) error {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range backing {
		// A device that has gone meanwhile cannot be read.
		if file, _ := os.ReadFile(path); strings.Contains(string(file), "/"+id+"/") {
			return fmt.Errorf("%s is still there: %s", path, file)
		}
	}
	return err
}

// images lists the images of the pool, of whatever maker.
func images(t *testing.T) []string {
	t.Helper()
	return strings.Fields(ceph(t, "rbd", "ls"))
}

// volume is what docker volume inspect shows.
type volume struct {
	Name, Driver, Mountpoint, Scope, CreatedAt string
	Labels, Options                            map[string]string
	Status                                     map[string]any
}

func inspect(t *testing.T, name string) volume {
	t.Helper()
	var v []volume
	out := docker(t, "volume", "inspect", name)
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) != 1 {
		t.Fatalf("docker volume inspect %s: %v: %s", name, err, out)
	}
	return v[0]
}

// listed tells whether docker volume ls shows the volume; filters are its own.
func listed(t *testing.T, name string, filters ...string) bool {
	t.Helper()
	args := []string{"volume", "ls", "-q"}
	for _, f := range filters {
		args = append(args, "-f", f)
	}
	return slices.Contains(strings.Fields(docker(t, args...)), name)
}

// container starts a container that idles, and removes it after the test. Its
// programs ignore SIGTERM, as those of a shell do, so it is stopped with SIGKILL.
func container(t *testing.T, options ...string) string {
	t.Helper()
	name := unique(t)
	t.Cleanup(func() { docker(t, "rm", "-f", name) })
	args := append([]string{"run", "-d", "--name=" + name, "--network=none", "--stop-signal=KILL"}, options...)
	docker(t, append(args, image, "sleep", "1d")...)
	return name
}

// in runs a shell in a running container.
func in(t *testing.T, container, script string) string {
	t.Helper()
	return docker(t, "exec", container, "sh", "-ec", script)
}

// write has a container write /data/file, which is in Ceph afterwards: busybox's
// sync hides errors, dd does not.
func write(t *testing.T, container, text string) {
	t.Helper()
	docker(t, synced(container, text)...)
}

func synced(container, text string) []string {
	return []string{"exec", container, "sh", "-ec", "echo " + text + " | dd of=/data/file conv=fsync 2>/dev/null"}
}

// once runs a shell in a container of its own, with the volume on /data.
func once(t *testing.T, volume, script string) string {
	t.Helper()
	return docker(t, "run", "--rm", "--network=none", "-v", volume+":/data", image, "sh", "-ec", script)
}

// on is the option of docker run that puts a volume of ours on /data. Without
// the driver's name Docker makes a local volume if it does not find one.
func on(volume string) string {
	return "--mount=type=volume,volume-driver=rbd,src=" + volume + ",dst=/data"
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %#v, want %#v", what, got, want)
	}
}

func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Fatalf("%s: %q is missing in %q", what, part, text)
		}
	}
}

// wait waits until there is no error any more.
func wait(t *testing.T, limit time.Duration, fn func() error) {
	t.Helper()
	if err := eventually(limit, fn); err != nil {
		t.Fatal(err)
	}
}

func eventually(limit time.Duration, fn func() error) error { return tool.Within(limit, fn) }

// bounded fails if fn takes longer than Docker's users would bear, on an idle machine.
func bounded(t *testing.T, limit time.Duration, what string, fn func()) {
	t.Helper()
	slowness := tool.Slowness()
	start := time.Now()
	fn()
	took := time.Since(start)
	limit = stretch(limit, max(slowness, tool.Slowness()))
	t.Logf("%s took %d ms", what, took.Milliseconds())
	if took > limit {
		t.Errorf("%s took %v, allowed is %v", what, took, limit)
	}
}

func stretch(d time.Duration, by float64) time.Duration { return time.Duration(by * float64(d)) }

// process is one of the plugin's.
type process struct {
	pid  int
	args []string
}

// pluginProcesses are those in the control group of this engine's plugin; the
// first argument only means the plugin itself, one more an image server.
func pluginProcesses() (found []process, err error) {
	if plugin == "" {
		return nil, errors.New("there is no plugin")
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err1 := os.ReadFile(filepath.Join(dir, "cmdline"))
		cgroup, err2 := os.ReadFile(filepath.Join(dir, "cgroup"))
		args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		if err1 != nil || err2 != nil || args[0] != "/usr/bin/docker-volume-rbd" || !strings.Contains(string(cgroup), plugin) {
			continue // it has ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		found = append(found, process{pid, args})
	}
	return found, err
}

// pluginPID is the plugin's main process.
func pluginPID() (int, error) {
	processes, err := pluginProcesses()
	if err != nil {
		return 0, err
	}
	for _, p := range processes {
		if len(p.args) == 1 {
			return p.pid, nil
		}
	}
	return 0, errors.New("the plugin does not run")
}
