package fuse

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// job is what a child gets on its standard input.
type job struct {
	Cluster, ConfFile, User, Keyring string
	Pool, Namespace                  string
	Name, ID, Snap                   string
	Mountpoint                       string
	ReadOnly                         bool
	Encryption                       *backend.Encryption // never in an argument or the environment: others see those
}

// start runs a child until it serves the image, or leaves nothing of it.
func (m *Mapper) start(ctx context.Context, image backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	lock, err := takeLock(m.lockfile(image.Key()))
	if errors.Is(err, backend.ErrBusy) { // an orphan that has not come as far as its mount
		if err := m.ForceUnmap(ctx, image.Key()); err != nil {
			return backend.Mapping{}, err
		}
		lock, err = takeLock(m.lockfile(image.Key()))
	}
	if err != nil {
		return backend.Mapping{}, err
	}
	addr, err := m.run(ctx, image, mode, lock)
	_ = lock.Close() // the child, if there is one, has it too
	if err != nil {
		return backend.Mapping{}, m.undo(ctx, image.Key(), fmt.Errorf("serve image: %w", err))
	}
	return backend.Mapping{Name: image.Name, ID: image.ID, Snap: image.Snap, Addr: addr, Alive: true, Mode: mode}, nil
}

// gentle is how long a child has to end by itself.
const gentle = 5 * time.Second

// closing is how long it has to close its image, which takes milliseconds as a rule.
var closing = 10 * time.Second

// undo ends what an unfinished Map has started, and returns its error. It does
// so gently, as long as that works: a child that is killed stays a watcher of
// the image for 30 s, and nobody knows whose it was.
func (m *Mapper) undo(ctx context.Context, key string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	gently, cancel := context.WithTimeout(ctx, gentle)
	defer cancel()
	err := m.Unmap(gently, key)
	if err == nil {
		err = m.waitForChild(gently, key) // one that has not mounted yet ends when it finds nobody to tell
	}
	if err == nil {
		err = m.tidy(key)
	} else {
		err = m.ForceUnmap(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("%w; and then: %w", cause, err)
	}
	return cause
}

// run starts a child and waits for its word. It is in a session of its own: a
// Ctrl-C or the end of the plugin is not the end of the containers' data path.
func (m *Mapper) run(ctx context.Context, image backend.Image, mode backend.OpenMode, lock *os.File) (addr string, err error) {
	if err := os.MkdirAll(m.mountpoint(image.Key()), 0o700); err != nil {
		return "", err
	}
	input, err := json.Marshal(job{
		Cluster: m.Ceph.Cluster, ConfFile: m.Ceph.ConfFile, User: m.Ceph.User, Keyring: m.Ceph.Keyring,
		Pool: m.Ceph.Pool, Namespace: m.Ceph.Namespace, Name: image.Name, ID: image.ID, Snap: image.Snap,
		Mountpoint: m.mountpoint(image.Key()), ReadOnly: mode == backend.ReadOnly, Encryption: image.Encryption,
	})
	if err != nil {
		return "", err
	}
	cmd := exec.Command(m.Command[0], m.Command[1:]...) //nolint:noctx // it outlives the request
	cmd.Stdin = bytes.NewReader(input)
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr tail
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- strings.TrimSpace(line)
		err := cmd.Wait()
		if text := stderr.String(); text != "" {
			m.Log.WithField("volume", image.Name).Warnf("image server ended (%v): %s", err, text)
		}
	}()
	select {
	case line := <-ready:
		if addr, ok := strings.CutPrefix(line, readyPrefix); ok {
			return addr, nil
		}
		err = fmt.Errorf("it said %q", strings.TrimPrefix(line, failedPrefix))
	case <-ctx.Done():
		err = fmt.Errorf("%w: image not opened in time", backend.ErrUnavailable)
	}
	_ = stdout.Close()
	time.AfterFunc(gentle, func() { _ = cmd.Process.Kill() })
	return "", err
}

// takeLock creates and locks the file that stands for a living child. The
// child inherits the lock and writes its pid there.
func takeLock(path string) (*os.File, error) {
	for {
		lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = lock.Close()
			return nil, fmt.Errorf("%w: an image server is still there (%s)", backend.ErrBusy, path)
		}
		mine, err := lock.Stat()
		if err != nil {
			_ = lock.Close()
			return nil, err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return lock, lock.Truncate(0)
		}
		_ = lock.Close() // its last holder has removed it meanwhile
	}
}

// childAlive asks the lock, not the process: it is free once the child is gone.
func childAlive(path string) (bool, error) {
	lock, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) // shared: two may ask at once
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// killChild kills the process that holds the lock. The pid is its own word,
// and it cannot be another's while the lock is held.
func killChild(path string) error {
	alive, err := childAlive(path)
	if err != nil || !alive {
		return err
	}
	pid, err := childPid(path)
	if err != nil || pid <= 1 {
		return err // it has not written it yet: start kills it by itself
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill image server %d: %w", pid, err)
	}
	return nil
}

// childPid is the pid in a lock file, 0 if there is none yet.
func childPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid, err
}

func (m *Mapper) waitForChild(ctx context.Context, key string) error {
	for {
		alive, err := childAlive(m.lockfile(key))
		if err != nil || !alive {
			return err
		}
		if !pause(ctx) {
			return fmt.Errorf("image server of %s has not ended: %w", key, ctx.Err())
		}
	}
}

// tail keeps the end of what a child says on its standard error.
type tail struct{ buf []byte }

// Write is called by one goroutine of os/exec, which has ended when Wait returns.
func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 2000; over > 0 {
		t.buf = t.buf[over:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.Join(strings.Fields(string(t.buf)), " ") }
