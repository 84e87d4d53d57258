package rbd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// headerSize is what cryptsetup 2.6 and librbd give to the header of luks2; that of
// luks1 takes 2 MiB of it.
const headerSize = 16 << 20

// Encrypt writes the header; see backend.Handle.
func (h *handle) Encrypt(ctx context.Context, e backend.Encryption) error {
	if _, err := EncryptionOptions(&e); err != nil {
		return err
	}
	layout, err := h.Layout(ctx)
	if err != nil {
		return err
	}
	header, err := newHeader(ctx, e, dataOffset(layout))
	if err != nil {
		return err
	}
	return h.call(ctx, "encrypt", changes, func() error {
		// What a header that was cut short has left must not be taken for this one's.
		if _, err := h.img.Discard(0, headerSize); err != nil {
			return err
		}
		const part = 64 << 10
		for at := 0; at < len(header); at += part {
			block := header[at:min(at+part, len(header))]
			if bytes.Count(block, []byte{0}) == len(block) {
				continue
			}
			if _, err := h.img.WriteAt(block, int64(at)); err != nil {
				return err
			}
		}
		return h.img.Flush()
	})
}

// dataOffset is where the data begins, in bytes: after whole rounds of stripes, or
// librbd from 17 on takes the header for none.
func dataOffset(l backend.Layout) uint64 {
	round := l.ObjectSize * l.StripeCount
	return (headerSize + round - 1) / round * round
}

// newHeader has cryptsetup make it, on a file. librbd makes one as well, but has
// libcryptsetup find out what this machine can bear: 160 to 600 MiB of memory (seen
// with 16.2) that everybody who opens it needs again, and a Raspberry Pi has not. So
// it is what RFC 9106 recommends where memory is short, 64 MiB, and for luks1, which
// knows PBKDF2 only, 600,000 rounds.
func newHeader(ctx context.Context, e backend.Encryption, offset uint64) ([]byte, error) {
	file, err := os.CreateTemp("", "luks")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	if err := file.Truncate(int64(offset) + headerSize); err != nil {
		return nil, err
	}
	args := []string{
		"luksFormat", "--batch-mode", "--disable-locks", "--type", e.Format, "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--offset", strconv.FormatUint(offset/512, 10), "--key-file", "-", file.Name(),
	}
	if e.Format == "luks2" {
		// Of larger sectors dm-crypt makes a device that refuses filesystems which were
		// made on a device of smaller ones, as the userspace mapper's is.
		args = append(args, "--sector-size", "512", "--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-parallel", "4", "--pbkdf-force-iterations", "4")
	} else {
		args = append(args, "--hash", "sha256", "--pbkdf-force-iterations", "600000")
	}
	cmd := exec.CommandContext(ctx, "cryptsetup", args...)
	cmd.Stdin = bytes.NewReader(e.Passphrase)               // never as an argument
	if out, err := cmd.CombinedOutput(); ctx.Err() != nil { // it was killed
		return nil, fmt.Errorf("cryptsetup luksFormat: stopped: %w", ctx.Err())
	} else if err != nil {
		return nil, fmt.Errorf("cryptsetup luksFormat: %w: %s", err, strings.Join(strings.Fields(string(out)), " "))
	}
	header := make([]byte, headerSize)
	_, err = file.ReadAt(header, 0)
	return header, err
}

// EncryptionOptions are those of librbd for an encryption.
func EncryptionOptions(e *backend.Encryption) (rbd.EncryptionOptions, error) {
	switch e.Format {
	case "luks1":
		return rbd.EncryptionOptionsLUKS1{Alg: rbd.EncryptionAlgorithmAES256, Passphrase: e.Passphrase}, nil
	case "luks2":
		return rbd.EncryptionOptionsLUKS2{Alg: rbd.EncryptionAlgorithmAES256, Passphrase: e.Passphrase}, nil
	}
	return nil, fmt.Errorf("%w encryption %q: allowed are luks1, luks2", backend.ErrInvalid, e.Format)
}
