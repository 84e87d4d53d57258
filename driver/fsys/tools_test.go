package fsys

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestOnlyWhatWasLeftInOrderIsNotChecked(t *testing.T) {
	for _, row := range []struct {
		name string
		do   []string // to the filesystem just made
		want bool
	}{
		{"just made", nil, true},
		{"an error was noted", []string{"debugfs", "-w", "-R", "set_super_value state 2"}, false},
		{"an error was noted, and it was unmounted", []string{"debugfs", "-w", "-R", "set_super_value state 3"}, false},
		{"not unmounted, without a journal", []string{"debugfs", "-w", "-R", "set_super_value state 0"}, false},
		{"a journal to replay", []string{"debugfs", "-w", "-R", "feature needs_recovery"}, false},
		{"checked after so many mounts", []string{"tune2fs", "-c", "30"}, false},
		{"checked after so many days", []string{"tune2fs", "-i", "30d"}, false},
		{"no such checks", []string{"tune2fs", "-c", "0", "-i", "0"}, true},
		{"another filesystem", []string{"mkfs.btrfs", "-q", "-f"}, false},
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
			if got, err := inOrder(image); err != nil || got != row.want {
				t.Errorf("in order: %v, %v; want %v", got, err, row.want)
			}
		})
	}
	if _, err := inOrder(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a device that is not there is in order")
	}
}
