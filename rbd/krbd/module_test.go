package krbd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// modprobeIs puts a script in the place of modprobe; sysfs is what it has to make.
func modprobeIs(t *testing.T, script string) (sysfs, dir string) {
	t.Helper()
	dir = t.TempDir()
	sysfs = filepath.Join(dir, "rbd")
	text := "#!/bin/sh\ncd " + dir + "; echo begun >>log\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "modprobe"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return sysfs, dir
}

// A slow node takes longer to load the module than anybody wants to wait. It is not
// stopped, nor asked once more, and in the end the kernel has it.
func TestAModuleThatIsLateIsNotMissing(t *testing.T) {
	sysfs, dir := modprobeIs(t, "while [ ! -e go ]; do sleep 0.05; done; mkdir rbd")
	var l loader
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := l.available(ctx, sysfs)
		cancel()
		if !errors.Is(err, ErrLate) || strings.Contains(err.Error(), "has no rbd") {
			t.Errorf("got %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.available(t.Context(), sysfs); err != nil {
		t.Error(err)
	}
	if log, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || string(log) != "begun\n" {
		t.Errorf("modprobe was run: %q, %v", log, err)
	}
}

func TestWhatModprobeSaysOfTheKernel(t *testing.T) {
	for script, want := range map[string]struct {
		late bool
		says string // "" = the kernel has it
	}{
		"mkdir rbd": {},
		"echo FATAL: Module rbd not found. >&2; exit 1": {says: "the kernel has no rbd, and modprobe rbd: exit status 1: FATAL: Module rbd not found."},
		"kill -KILL $$": {late: true, says: "modprobe rbd was stopped: signal: killed"},
		"exit 0":        {says: "is /sys of the host there?"},
	} {
		sysfs, _ := modprobeIs(t, script)
		var l loader
		err := l.available(t.Context(), sysfs)
		if (err == nil) != (want.says == "") || err != nil && !strings.Contains(err.Error(), want.says) || errors.Is(err, ErrLate) != want.late {
			t.Errorf("%s: got %v", script, err)
		}
	}
}
