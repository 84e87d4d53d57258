package krbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// The kernel's client knows no encryption (Ceph, doc/rbd/rbd-encryption.rst), but
// dm-crypt opens what librbd opens: a second device, on top of the first. It is
// found again in sysfs, by its name.

// cryptName is the device mapper's name for the plain text of /dev/rbdN.
func cryptName(number string) string { return "docker-volume-rbd" + number }

// plains are the devices with the plain text of /dev/rbdN, by N. One look at all
// block devices finds them: Mappings is asked for often, and a node may have many.
func (m *Mapper) plains() (map[string]string, error) {
	plains := map[string]string{}
	all, err := os.ReadDir(m.block())
	for _, entry := range all {
		if !strings.HasPrefix(entry.Name(), "dm-") {
			continue
		}
		number, err := m.below(entry.Name())
		if err != nil {
			return nil, err
		}
		if number != "" {
			plains[number] = "/dev/" + entry.Name()
		}
	}
	return plains, err
}

// below is the number of the /dev/rbdN of which dm-M is the plain text, "" if of none,
// or if it is going away: EINVAL then (Linux, drivers/md/dm-sysfs.c).
func (m *Mapper) below(plain string) (number string, err error) {
	name, err := os.ReadFile(filepath.Join(m.block(), plain, "dm", "name"))
	if err != nil && !gone(err) && !errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("look at /dev/%s: %w", plain, err)
	}
	number, found := strings.CutPrefix(strings.TrimSpace(string(name)), cryptName(""))
	if !found {
		return "", nil
	}
	return number, nil
}

// unlock opens an encrypted image that is mapped, or leaves it as it is.
func (m *Mapper) unlock(ctx context.Context, found *device, e *backend.Encryption) error {
	if e == nil || found.plain {
		return nil
	}
	// Without it cryptsetup says that it cannot, and why.
	_ = exec.CommandContext(ctx, "modprobe", "dm-crypt").Run()
	args := []string{
		"open", "--type", e.Format, "--key-file", "-", "--tries", "1",
		"--allow-discards",  // else what is deleted would not come back to the pool
		"--disable-keyring", // else nobody without the passphrase could make the device larger
	}
	if found.Mode == backend.ReadOnly {
		args = append(args, "--readonly")
	}
	err := cryptsetup(ctx, e.Passphrase, append(args, "/dev/rbd"+found.number, cryptName(found.number))...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return errors.New("the passphrase does not open the encrypted image")
	}
	if err != nil {
		return err
	}
	plains, err := m.plains()
	if err != nil {
		return err
	}
	if found.Device = plains[found.number]; found.Device == "" {
		return fmt.Errorf("/dev/rbd%s was opened, and yet there is no device with its plain text", found.number)
	}
	return nil
}

// lock takes the plain text away; ErrBusy if anybody has it open. With force that is
// left to the last one who has.
func (m *Mapper) lock(ctx context.Context, found device, force bool) error {
	if !found.plain {
		return nil
	}
	args := []string{"close", cryptName(found.number)}
	if force {
		args = append(args, "--deferred")
	}
	err := cryptsetup(ctx, nil, args...)
	plains, lookErr := m.plains()
	if lookErr != nil {
		return lookErr
	}
	var exit *exec.ExitError
	if plains[found.number] != "" && errors.As(err, &exit) && exit.Exited() && !force { // one that was stopped has not found it busy
		return fmt.Errorf("%s is %w: a container or another process has it open (%w)", found.Device, backend.ErrBusy, err)
	}
	return err
}

// growPlain gives the plain text the size that its device has by now.
func (m *Mapper) growPlain(ctx context.Context, addr, number string, size uint64) error {
	m.mu.Lock()
	known := m.grown[addr]
	m.mu.Unlock()
	if known == size {
		return nil
	}
	err := backend.Within(ctx, "resize the encrypted image (cryptsetup)", func() error {
		return cryptsetup(ctx, nil, "resize", cryptName(number))
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.grown == nil {
		m.grown = map[string]uint64{}
	}
	m.grown[addr] = size
	return nil
}

// cryptsetup runs it, with a passphrase on its standard input. Nobody in this
// container would answer to udev's cookies, and LUKS2's locks are for others who
// change a header: here the guard sees to that.
func cryptsetup(ctx context.Context, passphrase []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, "cryptsetup", append([]string{"--disable-locks", "--batch-mode"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DM_DISABLE_UDEV=1"}
	cmd.Stdin = bytes.NewReader(passphrase)
	out, err := cmd.CombinedOutput()
	switch said := strings.Join(strings.Fields(string(out)), " "); {
	case err == nil:
		return nil
	case ctx.Err() != nil: // it was killed
		return fmt.Errorf("cryptsetup %s: stopped: %w", args[0], ctx.Err())
	case said != "":
		err = fmt.Errorf("%w: %s", err, said)
	}
	return fmt.Errorf("cryptsetup %s: %w", args[0], err)
}
