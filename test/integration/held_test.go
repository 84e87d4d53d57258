package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// inNamespace runs commands in a mount namespace of its own, which lasts until release.
func inNamespace(t *testing.T, propagation, commands string) (release func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", propagation, "sh", "-ec", commands+"\necho ready\nread end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("%s: %q, %v", commands, line, err)
	}
	return func() {
		_, _ = io.WriteString(in, "end\n")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// The plugin's directory is shared with the host, as Docker makes it, and many
// namespaces have a part of the host's tree.
func TestWhoHoldsAVolume(t *testing.T) {
	dir := t.TempDir() // the host's path of the directory
	testbed.Run(t, "mount", "--bind", dir, dir)
	t.Cleanup(func() { testbed.Run(t, "umount", "--lazy", dir) })
	testbed.Run(t, "mount", "--make-shared", dir)
	fs := fsys.FS{HostMounts: table(t, "/proc/1/mountinfo")}
	target, other := t.TempDir(), t.TempDir()
	before := inNamespace(t, "slave", "") // before the volume is mounted: it comes by propagation
	defer before()
	m := backend.Mount{Device: device(t, 16<<20), Path: filepath.Join(dir, "v"), FSType: "ext4"}
	if err := errors.Join(fs.Format(t.Context(), m.Device, "ext4", nil, true), fs.Mount(t.Context(), m)); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		what, propagation, commands string
		held                        bool
	}{
		{"nobody", "slave", "", false},
		{"a slave of the host's tree", "slave", "true", false},
		{"a peer of it", "shared", "true", false},
		{"a slave of a slave, shared by itself", "slave", "mount --make-shared " + dir + "; unshare --mount --propagation slave true", false},
		{"a container with the host's tree, as it goes on", "slave", "mount --rbind --make-rslave " + dir + " " + other, false},
		{"a container with the host's tree, as it was", "private", "true", false},
		{"a container with the volume", "slave", "mount --bind " + m.Path + " " + target, true},
		{"a container with a directory of the volume", "slave", fmt.Sprintf("mkdir -p %s/d; mount --bind %s/d %s", m.Path, m.Path, target), true},
		{"a container with the volume alone", "slave", fmt.Sprintf("mount --bind %s %s; umount %s || umount -l %s", m.Path, target, m.Path, m.Path), true},
		{"a container that gets what is mounted in it later", "slave", fmt.Sprintf("mount --bind --make-slave %s %s", m.Path, target), true},
	} {
		t.Run(row.what, func(t *testing.T) {
			release := func() {}
			if row.commands != "" {
				release = inNamespace(t, row.propagation, row.commands)
			}
			held, err := fs.Held(t.Context(), dir, []string{m.Device})
			if err != nil || held[m.Device] != row.held {
				t.Errorf("held: %v, %v; want %v", held, err, row.held)
			}
			release()
		})
	}
	// As of what holds nothing: it goes when it is unmounted here.
	for _, propagation := range []string{"slave", "private"} {
		defer inNamespace(t, propagation, "true")()
	}
	if err := fs.Unmount(t.Context(), m.Path); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(m.Device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("%s: %v", m.Device, err)
	}
	_ = unix.Close(fd)
	if _, err := (fsys.FS{}).Held(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "not visible") {
		t.Errorf("where the host is not visible: %v", err)
	}
}
