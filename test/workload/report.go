package workload

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Kind says what a writer reports.
type Kind string

// What a writer reports.
const (
	Start Kind = "start" // it has read the log, all that is in it is durable
	Ack   Kind = "ack"   // its record is durable
	Stop  Kind = "stop"  // it ends because it has been told to
	Error Kind = "error" // it ends because of an error

	closing Kind = "closing" // a listener's word to itself
)

// Report is what a writer tells the test.
type Report struct {
	Kind   Kind   `json:"kind"`
	Writer string `json:"writer"` // NODE/RANDOM, another for each process
	Node   string `json:"node"`
	Seq    uint64 `json:"seq,omitempty"`   // start: the last record found; ack: the durable one
	Runs   []Run  `json:"runs,omitempty"`  // start: all records found
	Tail   string `json:"tail,omitempty"`  // start: what is wrong with the log's end
	Error  string `json:"error,omitempty"` // error

	At time.Time `json:"-"` // when it arrived
}

// maxReport is the size that a report may have; a run takes about 70 bytes.
const maxReport = 200 << 10

// Listener receives reports. Its socket is a file, which no partition of the
// network hides, and the kernel keeps all reports in one order.
type Listener struct {
	path string
	conn *net.UnixConn
	done chan struct{}
}

// Listen makes a socket and calls each for every report, one after another. What
// is no report is handed on as one of no kind.
func Listen(path string, each func(Report)) (*Listener, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	l := &Listener{path: path, conn: conn, done: make(chan struct{})}
	go l.receive(each)
	return l, nil
}

func (l *Listener) receive(each func(Report)) {
	defer close(l.done)
	buf := make([]byte, maxReport+1)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			return
		}
		r := Report{}
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			r = Report{Error: fmt.Sprintf("%d bytes that are no report: %v", n, err)}
		}
		if r.Kind == closing {
			return
		}
		r.At = time.Now()
		each(r)
	}
}

// Close ends the listener after the reports that have been sent by now.
func (l *Listener) Close() {
	s, err := Dial(l.path)
	if err == nil {
		err = s.Send(Report{Kind: closing})
		s.Close()
	}
	if err != nil {
		_ = l.conn.Close() // the file is gone, or this is closed already
	}
	<-l.done
	_ = l.conn.Close()
	_ = os.Remove(l.path)
}

// Sender sends reports.
type Sender struct{ conn io.WriteCloser }

// Dial finds a listener. "-" is for a listener behind the standard output, see
// Follow.
func Dial(path string) (*Sender, error) {
	if path == "-" {
		return &Sender{os.Stdout}, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	_ = conn.SetWriteBuffer(maxReport) // if that is refused, Send is
	return &Sender{conn}, nil
}

// Send sends a report. It fails if nobody listens and waits for one who is slow,
// without a deadline: that would pass while the writer is paused.
func (s *Sender) Send(r Report) error {
	data, err := json.Marshal(r)
	if err == nil {
		if s.conn == os.Stdout {
			data = append(data, '\n')
		}
		_, err = s.conn.Write(data)
	}
	if err != nil {
		return fmt.Errorf("report %s: %w", r.Kind, err)
	}
	return nil
}

// Follow receives the reports that a sender writes to its standard output, until
// that ends. Lines that are no reports are left out.
func Follow(r io.Reader, each func(Report)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxReport)
	for lines.Scan() {
		var report Report
		if json.Unmarshal(lines.Bytes(), &report) == nil && report.Kind != "" {
			report.At = time.Now()
			each(report)
		}
	}
}

// Close closes the sender's socket.
func (s *Sender) Close() { _ = s.conn.Close() }
