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

var program = sync.OnceValues(func() (path string, err error) {
	if programDir, err = os.MkdirTemp("", "rbd"); err != nil {
		return "", err
	}
	path = filepath.Join(programDir, "docker-volume-rbd")
	build := exec.Command("go", "build", "-tags", os.Getenv("TAGS"), "-o", path,
		"github.com/docker-volume-rbd/docker-volume-rbd/cmd/docker-volume-rbd")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s (is TAGS set, as make test does?)", err, out)
	}
	return path, nil
})

// Program builds the plugin, once, and returns its path.
func Program(tb testing.TB) string {
	tb.Helper()
	path, err := program()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}
