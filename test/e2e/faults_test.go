package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The engine is restarted while a container has a volume.
func TestEngineRestart(t *testing.T) {
	engineEnds(t, func() error {
		_, err := sh("engine.sh", "restart", engine)
		return err
	})
}

// The engine is killed while a container has a volume: nobody unmounts it.
func TestEngineCrash(t *testing.T) {
	engineEnds(t, func() error {
		_, err := sh("engine.sh", "kill", engine)
		if err == nil {
			_, err = sh("engine.sh", "start", engine)
		}
		return err
	})
}

func engineEnds(t *testing.T, end func() error) {
	story(t)
	name, idle := volumeName(t), volumeName(t)
	for _, v := range []string{name, idle} {
		docker(t, "volume", "create", "-d", "rbd", "-o", "size=64M", "--label", "team=blue", v)
	}
	c := container(t, on(name))
	write(t, c, "kept")

	if err := end(); err != nil {
		t.Fatal(err)
	}
	equal(t, "plugin enabled", docker(t, "plugin", "inspect", "-f", "{{.Enabled}}", pluginName), "true")
	for _, v := range []string{name, idle} {
		if !listed(t, v, "label=team=blue") {
			t.Errorf("docker volume ls does not list %s with its label", v)
		}
		equal(t, "option", inspect(t, v).Options["size"], "64M")
	}
	equal(t, "container running", docker(t, "inspect", "-f", "{{.State.Running}}", c), "false")
	equal(t, "in a new container", once(t, name, "cat /data/file"), "kept")
	docker(t, "start", c)
	equal(t, "in the old container, started again", in(t, c, "cat /data/file"), "kept")
	in(t, c, "echo more >>/data/file")
	docker(t, "rm", "-f", c)
	equal(t, "in a new container", once(t, name, "cat /data/file"), "kept\nmore")
}

// The plugin crashes while a container has a volume. In userspace the data path
// is a process of the plugin's container and dies with it: the old container has
// lost its volume, a new one gets it.
func TestPluginCrash(t *testing.T) {
	story(t)
	name, idle := newVolume(t, "size=64M"), newVolume(t, "size=64M")
	c := container(t, on(name))
	write(t, c, "kept")
	device, _ := inspect(t, name).Status["device"].(string)

	pid := crash(t)
	wait(t, 20*time.Second, func() error {
		now, err := pluginPID()
		if err == nil && now == pid {
			err = fmt.Errorf("process %d has not ended", pid)
		}
		return errors.Join(err, activate())
	})
	if _, err := try(synced(c, "lost")...); err == nil {
		t.Error("a container that has lost its volume can write")
	}
	for _, v := range []string{name, idle} {
		if !listed(t, v) {
			t.Errorf("docker volume ls does not list %s", v)
		}
	}
	equal(t, "another volume", once(t, idle, "echo ok >/data/file; cat /data/file"), "ok")
	docker(t, "rm", "-f", c)
	wait(t, 20*time.Second, func() error { return noDeadLoop(device) })
	equal(t, "in a new container", once(t, name, "cat /data/file; echo more >>/data/file"), "kept")

	c = container(t, on(name))
	equal(t, "in a container that stays", in(t, c, "cat /data/file"), "kept\nmore")
	docker(t, "rm", "-f", c)
	equal(t, "status device", inspect(t, name).Status["device"], nil)
}

// The same, and the containers that lost the volume are simply restarted.
func TestPluginCrashContainerRestarted(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	c := container(t, on(name))
	write(t, c, "kept")
	crash(t)
	docker(t, "restart", c)
	equal(t, "after docker restart", in(t, c, "cat /data/file; echo more >>/data/file"), "kept")
}

// crash kills the plugin's main process. Docker starts it again.
func crash(t *testing.T) (pid int) {
	t.Helper()
	pid, err := pluginPID()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// The plugin's directory has stopped to be shared with the host, as dockerd may
// leave it after a crash. No container writes to the host's disk; and as no
// volume is in use the plugin has itself started afresh.
func TestSharedDirectoryLost(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	once(t, name, "echo kept >/data/file")
	pid, err := pluginPID()
	if err != nil {
		t.Fatal(err)
	}
	unshare(t, pid, "/var/lib/docker-volume-rbd")
	contains(t, "docker run", dockerFails(t, "run", "--rm", "--network=none", on(name), image, "true"), "does not reach the host")
	wait(t, time.Minute, func() error {
		_, _ = try("run", "--rm", "--network=none", on(name), image, "true") // it does not end right after its start
		if now, err := pluginPID(); err != nil || now == pid {
			return fmt.Errorf("the plugin has not been started afresh (process %d, was %d): %w", now, pid, err)
		}
		return activate()
	})
	equal(t, "in a new container", once(t, name, "cat /data/file"), "kept")
}

// unshare makes a mount private in the mount namespace of a process.
func unshare(t *testing.T, pid int, path string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its odd namespace
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err == nil {
			err = unix.Unshare(unix.CLONE_FS)
		}
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = unix.Mount("", path, "", unix.MS_PRIVATE, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// noDeadLoop fails if a device is on a file of a filesystem that is mounted
// nowhere any more: only the path inside that filesystem is left of the name.
func noDeadLoop(device string) error {
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err == nil && strings.HasPrefix(string(file), "/image-") {
		return fmt.Errorf("%s of a dead mapping is still there", device)
	}
	return nil // it has gone, or is another's now
}

// The plugin is disabled and enabled again.
func TestPluginDisabled(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	once(t, name, "echo kept >/data/file")
	docker(t, "plugin", "disable", "-f", pluginName)
	t.Cleanup(enable)
	if processes, err := pluginProcesses(); err != nil || len(processes) > 0 {
		t.Errorf("processes of a disabled plugin: %v, %v", processes, err)
	}
	contains(t, "docker run", dockerFails(t, "volume", "create", "-d", "rbd", "-o", "size=64M", unique(t)), "plugin rbd found but disabled")
	docker(t, "plugin", "enable", pluginName)
	if !listed(t, name) {
		t.Error("docker volume ls does not list it")
	}
	equal(t, "in a new container", once(t, name, "cat /data/file"), "kept")
}

// The plugin is disabled by force under a running container.
func TestPluginDisabledInUse(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	c := container(t, on(name))
	write(t, c, "kept")
	docker(t, "plugin", "disable", "-f", pluginName)
	t.Cleanup(enable)
	docker(t, "plugin", "enable", pluginName)
	docker(t, "rm", "-f", c)
	equal(t, "in a new container", once(t, name, "cat /data/file"), "kept")
}

func enable() { _, _ = try("plugin", "enable", pluginName) }
