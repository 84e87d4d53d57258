package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
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
	one := backend.Mapping{Device: "/dev/loop1"}
	if mode, err := modeOf(block, one); err != nil || mode != backend.ReadOnly {
		t.Errorf("mode %v, %v", mode, err)
	}
	if mode, err := modeOf(block, backend.Mapping{Device: "/dev/loop7"}); err != nil || mode != backend.ReadWrite {
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

// Kernels before 5.8 know no LOOP_CONFIGURE: what it does at once is done step by step,
// and the device is the same. This kernel has both.
func TestALoopDeviceOfAnOldKernel(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[backend.OpenMode]string{backend.ReadWrite: "0", backend.ReadOnly: "1"} {
		for name, configure := range map[string]func(*os.File, *unix.LoopConfig) error{
			"at once": func(dev *os.File, config *unix.LoopConfig) error {
				return unix.IoctlLoopConfigure(int(dev.Fd()), config)
			},
			"in steps": configureInSteps,
		} {
			t.Run(fmt.Sprintf("%v %s", mode, name), func(t *testing.T) {
				dev, err := attachLoop(configure, file, mode)
				if err != nil {
					t.Fatal(err)
				}
				block := filepath.Join(sysBlock, filepath.Base(dev.Name()))
				for path, want := range map[string]string{
					"size": "2048", "ro": want, "loop/backing_file": file, "loop/autoclear": "1", "loop/dio": "1",
				} {
					if got, err := os.ReadFile(filepath.Join(block, path)); err != nil || strings.TrimSpace(string(got)) != want {
						t.Errorf("%s: %q, %v; want %s", path, got, err, want)
					}
				}
				name := dev.Name()
				_ = dev.Close()
				for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					on, err := loopOf(sysBlock, file)
					if err == nil && on == "" {
						break
					}
					if time.Now().After(end) {
						t.Fatalf("%s is still on %s, %v", name, on, err)
					}
				}
			})
		}
	}
}

// A device without a size is none: it would pass for one that was never written.
func TestALoopDeviceWithoutASizeIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := attachLoop(configureLoop, file, backend.ReadWrite)
	if err == nil {
		_ = dev.Close()
	}
	if !errors.Is(err, backend.ErrUnavailable) || strings.Contains(err.Error(), "\n") {
		t.Errorf("it is one, or not one line tells why not: %v", err)
	}
	if on, err := loopOf(sysBlock, file); err != nil || on != "" {
		t.Errorf("left behind: %s, %v", on, err)
	}
}

// A device's name comes again: what is known of it is known of its client.
func TestNothingIsRememberedByTheNameOfALoopDevice(t *testing.T) {
	stopped := make(chan struct{})
	m := &Mapper{Dir: t.TempDir(), asked: map[string]chan struct{}{"10.0.0.1:0/1": stopped, "/dev/loop-none": stopped}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := m.Size(ctx, backend.Mapping{ID: "2", Device: "/dev/loop-none", Addr: "10.0.0.1:0/2"}); err == nil || errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("it waited for the server of before: %v", err)
	}
	for _, device := range []string{"/dev/null", "/dev/zero"} {
		if err := m.hold("1", device); err != nil || m.held["1"].Name() != device {
			t.Errorf("%v is held, %v; want %s", m.held["1"].Name(), err, device)
		}
	}
	m.release("1")
}
