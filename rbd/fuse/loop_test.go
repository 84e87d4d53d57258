package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// What cannot be read, here as it is a directory, is neither free nor writable.
func TestALoopDeviceThatCannotBeReadIsNotFree(t *testing.T) {
	block := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(block, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("loop0/size", "0\n") // free
	write("loop1/loop/backing_file", "/run/a\n")
	write("loop1/ro", "1\n")
	write("sda/size", "8\n")
	for file, want := range map[string]string{"/run/a": "/dev/loop1", "/run/b": ""} {
		if got, err := loopOf(block, file); err != nil || got != want {
			t.Errorf("on %s: %q, %v; want %q", file, got, err, want)
		}
	}
	one := driver.Mapping{Device: "/dev/loop1"}
	if mode, err := modeOf(block, one); err != nil || mode != driver.ReadOnly {
		t.Errorf("mode %v, %v", mode, err)
	}
	if mode, err := modeOf(block, driver.Mapping{Device: "/dev/loop7"}); err != nil || mode != driver.ReadWrite {
		t.Errorf("mode of one that is gone: %v, %v", mode, err)
	}
	for _, name := range []string{"loop1/loop/backing_file", "loop1/ro"} {
		path := filepath.Join(block, name)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := loopOf(block, "/run/a"); err == nil {
		t.Errorf("a backing file that cannot be read: %q", got)
	}
	if mode, err := modeOf(block, one); err == nil {
		t.Errorf("a mode that cannot be read: %v", mode)
	}
	if got, err := loopOf(filepath.Join(block, "none"), "/run/a"); err == nil {
		t.Errorf("no devices at all: %q", got)
	}
}

// A device's name comes again: what is known of it is known of its client.
func TestNothingIsRememberedByTheNameOfALoopDevice(t *testing.T) {
	stopped := make(chan struct{})
	m := &Mapper{Dir: t.TempDir(), asked: map[string]chan struct{}{"10.0.0.1:0/1": stopped, "/dev/loop-none": stopped}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := m.Size(ctx, driver.Mapping{ID: "2", Device: "/dev/loop-none", Addr: "10.0.0.1:0/2"}); err == nil || errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("it waited for the server of before: %v", err)
	}
	for _, device := range []string{"/dev/null", "/dev/zero"} {
		if err := m.hold("1", device); err != nil || m.held["1"].Name() != device {
			t.Errorf("%v is held, %v; want %s", m.held["1"].Name(), err, device)
		}
	}
	m.letGo("1")
}
