package fsys

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

func TestOnlyWhatWasLeftInOrderIsNotChecked(t *testing.T) {
	for _, row := range []struct {
		name string
		do   []string // to the filesystem just made
		want condition
	}{
		{"just made", nil, inOrder},
		{"errors were counted, and nobody has taken the count away", []string{"debugfs", "-w", "-R", "set_super_value error_count 3"}, counted},
		{"an error was noted", []string{"debugfs", "-w", "-R", "set_super_value state 2"}, doubtful},
		{"an error was noted, and it was unmounted", []string{"debugfs", "-w", "-R", "set_super_value state 3"}, doubtful},
		{"not unmounted, without a journal", []string{"debugfs", "-w", "-R", "set_super_value state 0"}, doubtful},
		{"a journal to replay", []string{"debugfs", "-w", "-R", "feature needs_recovery"}, doubtful},
		{"checked after so many mounts", []string{"tune2fs", "-c", "30"}, doubtful},
		{"checked after so many days", []string{"tune2fs", "-i", "30d"}, doubtful},
		{"no such checks", []string{"tune2fs", "-c", "0", "-i", "0"}, inOrder},
		{"no ext4", []string{"mkswap"}, doubtful},
	} {
		t.Run(row.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, 128<<20); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"mkfs.ext4", "-q"}, row.do} {
				if len(args) == 0 {
					continue
				}
				if out, err := exec.CommandContext(t.Context(), args[0], append(args[1:], image)...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", args, err, out)
				}
			}
			if got, err := conditionOf(image); err != nil || got != row.want {
				t.Errorf("condition: %v, %v; want %v", got, err, row.want)
			}
		})
	}
	if _, err := conditionOf(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a device that is not there is in order")
	}
}

// A count of errors of earlier times would pass for one of this mount.
func TestACountOfErrorsIsTakenAwayByTheCheck(t *testing.T) {
	image := ext4(t)
	debugfs(t, image, "set_super_value error_count 3")
	if err := (FS{}).Check(t.Context(), image, "ext4"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "dumpe2fs", "-h", image).CombinedOutput(); err != nil || strings.Contains(string(out), "FS Error count") {
		t.Errorf("it is still there: %v, %s", err, out)
	}
}

// What a check says of the filesystem it says by its own exit code. The tool here
// is none, but ends in all the ways in which one can.
func TestOnlyACheckThatHasEndedSaysThatAFilesystemIsDamaged(t *testing.T) {
	image := ext4(t)
	debugfs(t, image, "set_super_value state 2")
	for _, row := range []struct {
		name, script string
		limit        time.Duration
		says         string // "" = it may be mounted
		damaged      bool
	}{
		{"nothing to do", "exit 0", 0, "", false},
		{"corrected", "exit 1", 0, "", false},
		{"corrected, reboot", "exit 3", 0, "", false},
		{"errors are left", "echo inode 7 is bad; exit 4", 0, "e2fsck: exit status 4: inode 7 is bad; " + damaged, true},
		{"some are corrected, errors are left", "exit 5", 0, damaged, true},
		{"it cannot work", "echo no memory; exit 8", 0, "e2fsck: exit status 8: no memory", false},
		{"it was cancelled, with some corrected", "exit 33", 0, "e2fsck: exit status 33", false},
		{"killed", "kill -KILL $$", 0, "e2fsck: signal: killed", false},
		{"out of time", "exec sleep 60", 200 * time.Millisecond, "e2fsck: stopped: context deadline exceeded", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			tool(t, "e2fsck", row.script)
			ctx := t.Context()
			if row.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, row.limit)
				defer cancel()
			}
			err := (FS{}).Check(ctx, image, "ext4")
			if row.says == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), damaged) != row.damaged {
				t.Errorf("got %v, want %q", err, row.says)
			}
		})
	}
}

// What a device holds is not known when the tool that looks was stopped.
func TestAProbeThatWasStoppedSaysNothingOfTheContent(t *testing.T) {
	image := ext4(t)
	for script, content := range map[string]bool{"exit 8": true, "kill -KILL $$": false} {
		tool(t, "blkid", script)
		if _, err := (FS{}).Probe(t.Context(), image); err == nil || errors.Is(err, backend.ErrUnexpectedContent) != content {
			t.Errorf("%s: %v", script, err)
		}
	}
}

// ext4 is a file with a filesystem in it.
func ext4(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return image
}

func debugfs(t *testing.T, image, command string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "debugfs", "-w", "-R", command, image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// tool puts a script in the place of a tool.
func tool(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestADeadDeviceOfAnotherVolumeIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := errors.New("mkfs.btrfs: exit status 1: ERROR: cannot check mount status of /dev/loop15: Transport endpoint is not connected")
		for _, row := range []struct {
			err   error
			after time.Duration // it is gone; 0 = at once, it is of another kind
			want  error
		}{{nil, 0, nil}, {dead, 15 * time.Second, nil}, {dead, time.Hour, dead}, {io.ErrUnexpectedEOF, time.Hour, io.ErrUnexpectedEOF}} {
			start, tries := time.Now(), 0
			err := besideDead(t.Context(), func() error {
				if tries++; time.Since(start) >= row.after {
					return nil
				}
				return row.err
			})
			if !errors.Is(err, row.want) || errors.Is(row.err, io.ErrUnexpectedEOF) && tries != 1 || time.Since(start) > 21*time.Second {
				t.Errorf("%v for %v: %v after %v, %d tries", row.err, row.after, err, time.Since(start), tries)
			}
		}
	})
}
