package workload

import (
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, each func(Report)) (path string, l *Listener) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	l, err := Listen(path, each)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return path, l
}

func dial(t *testing.T, path string) *Sender {
	t.Helper()
	s, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestReports(t *testing.T) {
	var got []Report
	path, l := listen(t, func(r Report) {
		time.Sleep(100 * time.Microsecond) // senders wait
		got = append(got, r)
	})
	begin := time.Now()
	big := Report{Kind: Start, Writer: "n1/a", Node: "n1", Seq: 2000, Tail: "bad"}
	for i := range uint64(1000) {
		big.Runs = append(big.Runs, Run{strings.Repeat("w", WriterSize), 2*i + 1, 2*i + 2})
	}
	senders := []*Sender{dial(t, path), dial(t, path)}
	want := []Report{big}
	for seq := range uint64(300) {
		want = append(want, Report{Kind: Ack, Writer: "n1/a", Node: "n1", Seq: seq})
	}
	want = append(want, Report{Kind: Error, Error: "input/output error"})
	for i, r := range want {
		if err := senders[i%2].Send(r); err != nil {
			t.Fatal(err)
		}
	}
	l.Close() // and takes all that has been sent
	if len(got) != len(want) {
		t.Fatalf("%d reports of %d", len(got), len(want))
	}
	for i, r := range got {
		if r.At.Before(begin) || r.At.After(time.Now()) {
			t.Errorf("report %d at %v", i, r.At)
		}
		if r.At = (time.Time{}); !reflect.DeepEqual(r, want[i]) {
			t.Errorf("report %d: %v", i, r)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	path, l := listen(t, func(Report) {})
	s := dial(t, path)
	l.Close()
	l.Close()
	if err := s.Send(Report{Kind: Ack}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("listener gone: %v", err)
	}
	if _, err := Dial(path); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
}

func TestGarbageIsReported(t *testing.T) {
	c := NewChecker()
	path, l := listen(t, func(r Report) { _ = c.Add(r) })
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("garbage")); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if v := c.Violations(); len(v) != 1 || !strings.Contains(v[0].Error(), "7 bytes that are no report") {
		t.Error(v)
	}
}
