package fuse

import (
	"os"
	"path/filepath"
	"testing"

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
