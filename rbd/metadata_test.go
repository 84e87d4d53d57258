package rbd_test

import (
	"context"
	"encoding/json"
	"maps"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

const ourPrefix = "docker_volume."

// What is written in one operation of the class rbd is what librbd reads, and the other way round.
func TestMetadataIsThatOfLibrbd(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	spec := cfg.Pool + "/" + cfg.Namespace + "/" + image.Name
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(context.WithoutCancel(t.Context())) }()
	testbed.RBD(t, "image-meta", "set", spec, "of another", "stays")
	testbed.RBD(t, "image-meta", "set", spec, ourPrefix+"by hand", "before")
	meta := map[string]string{"x": "1", "empty": "", "two words": "ö, \"'\n\t\x01", "long": strings.Repeat("l", 4000), "by hand": "after"}
	if err := h.SetMeta(t.Context(), meta); err != nil {
		t.Fatal(err)
	}
	var listed map[string]string
	if err := json.Unmarshal([]byte(testbed.RBD(t, "image-meta", "list", spec, "--format", "json")), &listed); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"of another": "stays"}
	for key, value := range meta {
		want[ourPrefix+key] = value
	}
	if !maps.Equal(listed, want) {
		t.Errorf("rbd lists %q, want %q", listed, want)
	}
	if got, err := h.Meta(t.Context()); err != nil || !maps.Equal(got, meta) {
		t.Errorf("got %q, %v", got, err)
	}
	testbed.RBD(t, "image-meta", "set", spec, ourPrefix+"x", "2")
	testbed.RBD(t, "image-meta", "remove", spec, ourPrefix+"empty")
	meta["x"] = "2"
	delete(meta, "empty")
	if got, err := h.Meta(t.Context()); err != nil || !maps.Equal(got, meta) {
		t.Errorf("after rbd image-meta: %q, %v", got, err)
	}
}

// An image with a journal has its metadata written by librbd, which has it mirrored so.
func TestMetadataGoesThroughTheJournal(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	spec := cfg.Pool + "/" + cfg.Namespace + "/" + image.Name
	testbed.RBD(t, "feature", "enable", spec, "journaling")
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	err = h.SetMeta(t.Context(), map[string]string{"x": "1"})
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if status := testbed.RBD(t, "journal", "status", "--image", image.Name, "--pool", cfg.Pool, "--namespace", cfg.Namespace); !strings.Contains(status, "entry_tid") {
		t.Errorf("nothing in the journal: %s", status)
	}
}

// Whoever has the exclusive lock and does not answer holds up no metadata.
func TestMetadataWaitsForNoLock(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	lockedByASleeper(t, image.Name, cfg)
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(context.WithoutCancel(t.Context())) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := h.SetMeta(ctx, map[string]string{"x": "1"}); err != nil {
		t.Error(err)
	}
}

// lockedByASleeper has a client take the exclusive lock of an image and fall asleep.
func lockedByASleeper(t *testing.T, name string, cfg rbd.Config) (wakeUp func()) {
	t.Helper()
	spec := cfg.Pool + "/" + cfg.Namespace + "/" + name
	owner := exec.CommandContext(t.Context(), "rbd", "-c", testbed.Conf(), "bench", "--io-type", "write", "--io-total", "100G", spec)
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = owner.Process.Kill()
		_ = owner.Wait()
	})
	for start := time.Now(); !strings.Contains(testbed.RBD(t, "lock", "list", spec), "auto "); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("nobody took the lock")
		}
	}
	if err := owner.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return func() { _ = owner.Process.Signal(syscall.SIGCONT) }
}
