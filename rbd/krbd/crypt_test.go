package krbd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// cryptsetupIs puts a script in the place of cryptsetup.
func cryptsetupIs(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cryptsetup"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// plainText adds the device with the plain text of rbd3.
func plainText(t *testing.T, m *Mapper) {
	t.Helper()
	m.Block = t.TempDir()
	dm := filepath.Join(m.Block, "dm-0", "dm")
	if err := errors.Join(os.MkdirAll(dm, 0o755), os.WriteFile(filepath.Join(dm, "name"), []byte(cryptName("3")+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestTimeThatCryptsetupTookIsNotTheKernels(t *testing.T) {
	image := backend.Image{Name: "db1", ID: "5e4a6b8b4567", Encryption: &backend.Encryption{Format: "luks2", Passphrase: []byte("x")}}
	for _, row := range []struct {
		name string
		do   func(ctx context.Context, m *Mapper) error
		says string
	}{
		{"map", func(ctx context.Context, m *Mapper) error {
			m.Block = t.TempDir()
			_, err := m.Map(ctx, image, backend.ReadWrite)
			return err
		}, "open the encrypted image (cryptsetup) has not ended in time"},
		{"unmap", func(ctx context.Context, m *Mapper) error {
			plainText(t, m)
			return m.Unmap(ctx, image.ID)
		}, "close the encrypted image (cryptsetup) has not ended in time"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := newTree(t, "remove")
			tr.device("3", nil)
			m := tr.mapper()
			cryptsetupIs(t, "trap '' TERM; while :; do sleep 0.2; done >/dev/null 2>&1")
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := row.do(ctx, m)
			// It is killed then: either is what happened.
			if err == nil || !strings.Contains(err.Error(), row.says) && !strings.Contains(err.Error(), "cryptsetup "+map[string]string{"map": "open", "unmap": "close"}[row.name]+": stopped") {
				t.Errorf("got %v, want %q", err, row.says)
			}
			if errors.Is(err, backend.ErrBusy) {
				t.Errorf("it was not found busy: %v", err)
			}
		})
	}
}

// Busy is what cryptsetup says, not that it could not say anything.
func TestOnlyACryptsetupThatHasEndedFindsADeviceBusy(t *testing.T) {
	for script, busy := range map[string]bool{"echo Device is still in use.; exit 5": true, "kill -KILL $$": false} {
		tr := newTree(t, "remove")
		tr.device("3", nil)
		m := tr.mapper()
		plainText(t, m)
		cryptsetupIs(t, script)
		if err := m.Unmap(t.Context(), "5e4a6b8b4567"); err == nil || errors.Is(err, backend.ErrBusy) != busy {
			t.Errorf("%s: %v", script, err)
		}
		tr.want("remove", "")
	}
}

// A number of the kernel's comes again: what was done for an encrypted device says
// nothing of the next one of that number.
func TestThePlainTextOfEachDeviceIsMadeLarger(t *testing.T) {
	tr, log := newTree(t), filepath.Join(t.TempDir(), "log")
	cryptsetupIs(t, `echo "$@" >>`+log)
	tr.file("block/dm-3/dm/name", "docker-volume-rbd0\n")
	tr.file("block/dm-3/size", "1000\n")
	tr.file("block/rbd0/size", "2000\n")
	m := tr.mapper()
	m.Block = filepath.Join(tr.dir, "block")
	for n, addr := range []string{"10.0.0.1:0/1", "10.0.0.1:0/2"} {
		for range 2 {
			if size, err := m.Size(t.Context(), backend.Mapping{Device: "/dev/dm-3", Addr: addr}); err != nil || size != 1000*512 {
				t.Errorf("size %d, %v", size, err)
			}
		}
		said, err := os.ReadFile(log)
		if err != nil || strings.Count(string(said), "resize docker-volume-rbd0\n") != n+1 {
			t.Errorf("client %s: cryptsetup was told %q, %v", addr, said, err)
		}
	}
}
