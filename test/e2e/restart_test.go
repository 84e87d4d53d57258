package e2e

import (
	"errors"
	"testing"
)

// With live-restore the engine leaves containers, and the plugin with its image
// servers, running: whatever happens to it, the volumes stay in use, and they are
// let go by who comes back. Restarted with nothing running it unmounts the
// plugin's directory, and mounts must reach containers after that, too.
func TestLiveRestore(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	restart := func(flags ...string) error {
		_, err := sh("engine.sh", append([]string{"restart", engine}, flags...)...)
		return err
	}
	crash := func() error {
		_, err := sh("engine.sh", "kill", engine)
		if err == nil {
			_, err = sh("engine.sh", "start", engine)
		}
		return err
	}
	orFail := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	orFail(restart("--live-restore"))
	t.Cleanup(func() { orFail(restart("--live-restore=false")) })
	pid, err := pluginPID()
	orFail(err)
	for _, end := range []struct {
		name string
		do   func() error
	}{{"restarted", func() error { return restart() }}, {"crashed", crash}} {
		c := container(t, on(name))
		write(t, c, "before")
		orFail(end.do())
		equal(t, end.name+": container running", docker(t, "inspect", "-f", "{{.State.Running}}", c), "true")
		write(t, c, end.name)
		equal(t, end.name+": read by another", once(t, name, "cat /data/file"), end.name)
		docker(t, "rm", "-f", c)
		equal(t, end.name+": status device", inspect(t, name).Status["device"], nil)
		orFail(end.do()) // with nothing running
		equal(t, end.name+" with nothing running: in a new container", once(t, name, "cat /data/file"), end.name)
	}
	now, err := pluginPID()
	orFail(err)
	equal(t, "process of the plugin", now, pid)
}
