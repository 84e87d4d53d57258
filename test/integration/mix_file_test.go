package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// hangs bounds what the kernel may make wait: a filesystem is frozen by a plugin that
// was killed meanwhile, until it is back.
const hangs = 2 * time.Minute

var errHangs = errors.New("it hangs")

// bounded does something that may wait in the kernel.
func bounded[T any](do func() (T, error)) (T, error) {
	type result struct {
		is  T
		err error
	}
	ended := make(chan result, 1)
	go func() {
		is, err := do()
		ended <- result{is, err}
	}()
	select {
	case r := <-ended:
		return r.is, r.err
	case <-time.After(hangs):
		var none T
		return none, errHangs
	}
}

// openFile is the log of numbers on a mounted volume.
type openFile struct{ *os.File }

func openLog(mountpoint string) (*openFile, error) {
	return bounded(func() (*openFile, error) {
		f, err := os.OpenFile(filepath.Join(mountpoint, "numbers"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		return &openFile{f}, nil
	})
}

// write adds a number, and returns when it is safe.
func (f *openFile) write(n int64) error {
	_, err := bounded(func() (struct{}, error) {
		_, err := fmt.Fprintf(f, "%d.\n", n)
		if err == nil {
			err = f.Sync()
		}
		return struct{}{}, err
	})
	return err
}

func (f *openFile) close() {
	if f != nil {
		_, _ = bounded(func() (struct{}, error) { return struct{}{}, f.Close() })
	}
}

// readLog returns the last number, 0 if there is none.
func readLog(mountpoint string) (last int64, err error) {
	return bounded(func() (int64, error) {
		f, err := os.Open(filepath.Join(mountpoint, "numbers"))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		defer func() { _ = f.Close() }()
		var last int64
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			line := lines.Text()
			if len(line) < 2 || line[len(line)-1] != '.' { // cut short, or never written out
				continue
			}
			if n, err := strconv.ParseInt(line[:len(line)-1], 10, 64); err == nil {
				last = n
			}
		}
		return last, lines.Err()
	})
}
