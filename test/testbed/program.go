package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var programDir string

var (
	makeDir = sync.OnceValues(func() (string, error) {
		var err error
		programDir, err = os.MkdirTemp("", "rbd")
		return programDir, err
	})
	program   = sync.OnceValues(func() (string, error) { return build("docker-volume-rbd", "") })
	sabotaged = sync.OnceValues(func() (string, error) { return build("sabotaged", ",sabotage") })
)

func build(name, tags string) (path string, err error) {
	dir, err := makeDir()
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, name)
	build := exec.Command("go", "build", "-tags", os.Getenv("TAGS")+tags, "-o", path,
		"github.com/docker-volume-rbd/docker-volume-rbd/cmd/docker-volume-rbd")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s (is TAGS set, as make test does?)", err, out)
	}
	return path, nil
}

// Program builds the plugin, once, and returns its path.
func Program(tb testing.TB) string { return built(tb, program) }

// Sabotaged builds it so that it obeys test/faults.
func Sabotaged(tb testing.TB) string { return built(tb, sabotaged) }

func built(tb testing.TB, build func() (string, error)) string {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}
