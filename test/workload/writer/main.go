// Writer appends records to a log in a volume, each durable before it is
// acknowledged, and reports to the test that listens.
package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

// everyMeta is how many records come before a change of the filesystem's metadata.
const everyMeta = 64

type writer struct {
	path, name, node string
	interval         time.Duration
	reports          *workload.Sender
	file             *os.File
}

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT) // pid 1 has no other way to hear of them
	var w writer
	flag.StringVar(&w.path, "file", "/data/log", "the log")
	flag.StringVar(&w.node, "node", os.Getenv("NODE"), "name of the node, $NODE or the host's by default")
	flag.DurationVar(&w.interval, "interval", 20*time.Millisecond, "pause between records")
	socket := flag.String("report", "/report/socket", "socket of the test")
	flag.Parse()
	if err := w.connect(*socket); err != nil {
		fail(err)
	}
	if err := w.run(stop); err != nil {
		if err := w.report(workload.Report{Kind: workload.Error, Error: err.Error()}); err != nil {
			fmt.Fprintln(os.Stderr, "writer:", err)
		}
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "writer:", err)
	os.Exit(1)
}

func (w *writer) connect(socket string) (err error) {
	if w.node == "" {
		if w.node, err = os.Hostname(); err != nil {
			return err
		}
	}
	w.name = w.node + "/" + rand.Text()[:16]
	w.reports, err = workload.Dial(socket)
	return err
}

func (w *writer) report(r workload.Report) error {
	r.Writer, r.Node = w.name, w.node
	return w.reports.Send(r)
}

// run writes until it is told to stop.
func (w *writer) run(stop <-chan os.Signal) error {
	alone, err := w.alone(stop)
	if err != nil {
		return err
	}
	if !alone {
		return w.report(workload.Report{Kind: workload.Stop})
	}
	last, err := w.start()
	if err != nil {
		return err
	}
	block := workload.Blocks(1)
	for seq := last + 1; ; seq++ {
		select {
		case <-stop:
			return w.report(workload.Report{Kind: workload.Stop})
		case <-time.After(w.interval):
		}
		if err := workload.Encode(block, workload.Entry{Seq: seq, Writer: w.name}); err != nil {
			return err
		}
		if _, err := w.file.WriteAt(block, int64(seq-1)*workload.BlockSize); err != nil {
			return err
		}
		if err := w.file.Sync(); err != nil {
			return err
		}
		if err := w.report(workload.Report{Kind: workload.Ack, Seq: seq}); err != nil {
			return err
		}
		if seq%everyMeta == 0 {
			if err := w.meta(seq); err != nil {
				return err
			}
		}
	}
}

// alone opens the log and waits until no other writer of this node has it. Swarm
// that lost its leader may start a task anew beside the old one, and on one node
// they share the volume. A lock of the kernel says nothing to other nodes.
func (w *writer) alone(stop <-chan os.Signal) (bool, error) {
	var err error
	w.file, err = os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o644)
	if errors.Is(err, unix.EINVAL) {
		return false, fmt.Errorf("the filesystem refuses O_DIRECT: %w", err)
	} else if err != nil {
		return false, err
	}
	for {
		err := unix.Flock(int(w.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err == nil, err
		}
		select {
		case <-stop:
			return false, nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// start makes what is in the log durable and tells of it.
func (w *writer) start() (last uint64, err error) {
	if err := w.syncDir(); err != nil {
		return 0, err
	}
	info, err := w.file.Stat()
	if err != nil {
		return 0, err
	}
	entries, tail, err := workload.Scan(w.file, info.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.path, err)
	}
	if err := w.file.Sync(); err != nil {
		return 0, err
	}
	last = uint64(len(entries))
	return last, w.report(workload.Report{
		Kind: workload.Start, Seq: last, Runs: workload.Runs(entries), Tail: tail,
	})
}

// meta replaces a small file beside the log.
func (w *writer) meta(seq uint64) error {
	name := w.path + ".meta"
	file, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	_, err = file.WriteString(strconv.FormatUint(seq, 10) + "\n")
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return w.syncDir()
}

func (w *writer) syncDir() error {
	dir, err := os.Open(filepath.Dir(w.path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.Sync()
}
