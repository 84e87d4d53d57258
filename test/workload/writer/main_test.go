package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/workload"
)

var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "writer")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "writer")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(string(out))
	}
	return m.Run()
}

// bench is a log on a disk and a test that listens.
type bench struct {
	*testing.T
	dir, log string
	checker  *workload.Checker
	listener *workload.Listener
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "writer") // seldom a tmpfs, as /tmp may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bench{T: t, dir: dir, log: filepath.Join(dir, "data", "log"), checker: workload.NewChecker()}
	if err := os.Mkdir(filepath.Dir(b.log), 0o755); err != nil {
		t.Fatal(err)
	}
	b.listener, err = workload.Listen(filepath.Join(dir, "socket"), func(r workload.Report) {
		if err := b.checker.Add(r); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.listener.Close)
	return b
}

type process struct {
	*bench
	cmd    *exec.Cmd
	output bytes.Buffer
}

func (b *bench) start(node string) *process {
	b.Helper()
	p := &process{bench: b}
	p.cmd = exec.CommandContext(b.Context(), program, "-file", b.log, "-report", filepath.Join(b.dir, "socket"),
		"-interval", "100us")
	p.cmd.Env = append(os.Environ(), "NODE="+node)
	p.cmd.Stderr = &p.output
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return p
}

// end waits until the process has ended by itself or by a signal.
func (p *process) end(signal unix.Signal) (code int) {
	p.Helper()
	if signal != 0 {
		_ = p.cmd.Process.Signal(signal)
	}
	if err := p.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		p.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// wait waits for n more acks by a node.
func (b *bench) wait(n uint64, node string) {
	b.Helper()
	highest, _ := b.checker.Acked()
	if _, err := b.checker.WaitAck(b.Context(), highest+n-1, node); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) scan() (entries []workload.Entry, tail string) {
	b.Helper()
	data, err := os.ReadFile(b.log)
	if err != nil {
		b.Fatal(err)
	}
	entries, tail, err = workload.Scan(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		b.Fatal(err)
	}
	return entries, tail
}

func (b *bench) errors(want string) {
	b.Helper()
	b.listener.Close()
	if e := b.checker.Errors(); len(e) != 1 || !strings.Contains(e[0].Error, want) {
		b.Errorf("want %q, got %v", want, e)
	}
}

func TestKilled(t *testing.T) {
	b := newBench(t)
	nodes := []string{"n1", "n2", "n1", "n3"}
	for i, node := range nodes {
		p := b.start(node)
		b.wait(80, node) // the filesystem's metadata changes on the way
		signal, want := unix.SIGKILL, -1
		if i == len(nodes)-1 {
			signal, want = unix.SIGTERM, 0
		}
		if code := p.end(signal); code != want {
			t.Errorf("%s: %d: %s", node, code, &p.output)
		}
		if i == 1 { // dies in the midst of an append
			entries, _ := b.scan()
			if err := os.Truncate(b.log, int64(len(entries))*workload.BlockSize+1000); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.listener.Close()
	entries, tail := b.scan()
	if err := b.checker.Verify(entries); err != nil || tail != "" {
		t.Error(err, tail)
	}
	var got []string
	for _, r := range workload.Runs(entries) {
		got = append(got, strings.Split(r.Writer, "/")[0])
	}
	if !slices.Equal(got, nodes) {
		t.Errorf("records of %v", got)
	}
	if s, e := b.checker.Stops(), b.checker.Errors(); len(s) != 1 || s[0].Node != "n3" || len(e) != 0 {
		t.Errorf("stops %v, errors %v", s, e)
	}
	if highest, _ := b.checker.Acked(); highest != uint64(len(entries)) {
		t.Errorf("%d acknowledged of %d", highest, len(entries)) // the last one stopped in order
	}
	if _, err := os.Stat(b.log + ".meta"); err != nil {
		t.Error(err)
	}
}

func TestPaused(t *testing.T) {
	b := newBench(t)
	p := b.start("n1")
	b.wait(5, "n1")
	_ = p.cmd.Process.Signal(unix.SIGSTOP)
	time.Sleep(50 * time.Millisecond)
	_ = p.cmd.Process.Signal(unix.SIGCONT)
	b.wait(5, "n1")
	if code := p.end(unix.SIGINT); code != 0 {
		t.Error(code, &p.output)
	}
}

func TestCorruptLog(t *testing.T) {
	b := newBench(t)
	p := b.start("n1")
	b.wait(10, "n1")
	p.end(unix.SIGTERM)
	file, err := os.OpenFile(b.log, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("x"), 4*workload.BlockSize+2000); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	p = b.start("n2")
	const want = "comes after a bad one: record 5: its checksum does not fit"
	if code := p.end(0); code != 1 || !strings.Contains(p.output.String(), want) {
		t.Error(code, &p.output)
	}
	b.errors(want)
	if w := b.checker.Writers(); len(w) != 1 {
		t.Error(w)
	}
}

func TestErrorsEndIt(t *testing.T) {
	t.Run("no directory", func(t *testing.T) {
		b := newBench(t)
		_ = os.Remove(filepath.Dir(b.log))
		if code := b.start("n1").end(0); code != 1 {
			t.Error(code)
		}
		b.errors("no such file or directory")
	})
	t.Run("directory goes", func(t *testing.T) {
		b := newBench(t)
		p := b.start("n1")
		b.wait(1, "n1")
		_ = os.RemoveAll(filepath.Dir(b.log))
		if code := p.end(0); code != 1 {
			t.Error(code)
		}
		b.errors("log.meta.new: no such file or directory")
	})
	t.Run("name too long", func(t *testing.T) {
		b := newBench(t)
		if code := b.start(strings.Repeat("n", 40)).end(0); code != 1 {
			t.Error(code)
		}
		b.errors("a name has 1 to 48 bytes")
	})
	t.Run("nobody listens", func(t *testing.T) {
		b := newBench(t)
		b.listener.Close()
		p := b.start("n1")
		if code := p.end(0); code != 1 || !strings.Contains(p.output.String(), "socket: connect: no such file") {
			t.Error(code, &p.output)
		}
	})
	t.Run("nobody listens any more", func(t *testing.T) {
		b := newBench(t)
		p := b.start("n1")
		b.wait(1, "n1")
		b.listener.Close()
		if code := p.end(0); code != 1 || !strings.Contains(p.output.String(), "report ack: write unixgram") {
			t.Error(code, &p.output)
		}
	})
}
