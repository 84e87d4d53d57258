package workload

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// Inspect looks at the copy of a volume: its filesystem must be clean, after a
// replay of the journal if it was left in use. It returns what is in the log.
func Inspect(file, dir string, left bool) (entries []Entry, err error) {
	mounted := func(do func() error) error {
		if _, err := tool.Run(time.Minute, "mount", "-o", "loop,noatime", file, dir); err != nil {
			return err
		}
		err := do()
		_, umount := tool.Run(time.Minute, "umount", dir)
		return errors.Join(err, umount)
	}
	if left { // the kernel replays the journal
		if err := mounted(func() error { return nil }); err != nil {
			return nil, err
		}
	}
	if out, err := tool.Run(5*time.Minute, "e2fsck", "-f", "-n", file); err != nil {
		return nil, fmt.Errorf("the filesystem is damaged: %w\n%s", err, out)
	}
	err = mounted(func() error {
		log, err := os.Open(filepath.Join(dir, "log"))
		if err != nil {
			return err
		}
		defer func() { _ = log.Close() }()
		info, err := log.Stat()
		if err != nil {
			return err
		}
		var tail string
		if entries, tail, err = Scan(log, info.Size()); err == nil && tail != "" && !left {
			err = fmt.Errorf("the end of the log is %s", tail)
		}
		return err
	})
	return entries, err
}
