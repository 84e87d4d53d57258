// Package testbed gives tests a real Ceph cluster: the one that make test has
// started or, when a test is run alone, one of its own.
package testbed

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	crbd "github.com/ceph/go-ceph/rbd"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
)

// Env names the directory of a running cluster (test/cluster.sh).
const Env = "TEST_CLUSTER"

var dir = os.Getenv(Env)

// serveImage makes the program of the tests an image server.
const serveImage = "serve-image"

// Main runs the tests of a package with a cluster. A TestMain calls it, as the
// same program is started as the image servers of its tests.
func Main(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == serveImage {
		if err := fuse.Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

// ImageServer is the command of an image server of the userspace mapper.
func ImageServer(tb testing.TB) []string {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	return []string{self, serveImage}
}

func run(m *testing.M) int {
	defer func() { _ = os.RemoveAll(programDir) }()
	if dir == "" {
		tmp, err := os.MkdirTemp("", "rbd")
		if err == nil {
			dir = filepath.Join(tmp, "c")
			err = script("cluster.sh", "start", dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "testbed:", err)
			return 1
		}
		defer func() {
			if err := script("cluster.sh", "stop", dir); err != nil {
				fmt.Fprintln(os.Stderr, "testbed:", err)
			}
			_ = os.RemoveAll(tmp)
		}()
	}
	return m.Run()
}

// script runs one of the scripts of folder test.
func script(name string, args ...string) error {
	_, self, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(self), "..", name), args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Conf is the configuration file of the cluster, for its command-line tools.
func Conf() string { return filepath.Join(dir, "ceph.conf") }

// Namespace makes a namespace of pool rbd for one test and returns how to get
// there. It is removed, with all its images, when the test ends.
func Namespace(tb testing.TB) rbd.Config {
	tb.Helper()
	var random [6]byte
	_, _ = rand.Read(random[:])
	cfg := rbd.Config{
		Cluster: "ceph", ConfFile: Conf(), User: "client.tests", Pool: "rbd",
		Namespace: "t" + hex.EncodeToString(random[:]), Log: Log(tb),
	}
	conn, err := rbd.Connect(cfg, map[string]string{"admin_socket": ""})
	if err != nil {
		tb.Fatal(err)
	}
	ioctx, err := conn.OpenIOContext(cfg.Pool)
	if err != nil {
		tb.Fatal(err)
	}
	if err := crbd.NamespaceCreate(ioctx, cfg.Namespace); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ioctx.Destroy()
		conn.Shutdown()
	})
	return cfg
}

// Log writes to the test's own log.
func Log(tb testing.TB) *logrus.Logger {
	log := logrus.New()
	log.SetLevel(logrus.DebugLevel)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true})
	w := &logWriter{tb: tb}
	tb.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	})
	log.SetOutput(w)
	return log
}

// logWriter ends with its test: what is still under way then may not log there.
type logWriter struct {
	mu    sync.Mutex
	tb    testing.TB
	ended bool
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.tb.Logf("%s", p)
	}
	return len(p), nil
}
