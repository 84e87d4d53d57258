package swarm

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// bed is the one that all stories of the honest plugin lie in.
var bed *Bed

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(story(m))
}

func story(m *testing.M) (code int) {
	plugin := os.Getenv("TEST_PLUGIN")
	if plugin == "" {
		fmt.Fprintln(os.Stderr, "swarm: TEST_PLUGIN names no directory with the built plugin (cmd/plugin.sh makes one)")
		return 1
	}
	dir, err := os.MkdirTemp("", "sw")
	if err == nil {
		fmt.Println("==> starting a swarm of three nodes")
		bed, err = Start(dir, plugin, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "swarm:", err)
		code = 1
	} else {
		code = m.Run()
	}
	if bed != nil && (code == 0 || os.Getenv("KEEP") == "") {
		if err := bed.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "swarm:", err)
			code = 1
		}
	}
	return code
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// service starts one for a test, which ends with all that was written.
func service(t *testing.T, options ...string) *Service {
	t.Helper()
	s, err := bed.Service(volumeName(t), ",volume-opt=size=256M", options...)
	must(t, err)
	ends(t, s)
	return s
}

func volumeName(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("Test", "", "/", "-").Replace(t.Name()))
}

// ends puts every node right after the test, and looks at what was written.
func ends(t *testing.T, s *Service) {
	t.Helper()
	from := logSizes()
	t.Cleanup(func() {
		for _, n := range bed.Nodes {
			n.Resume()
			must(t, n.Boot(), n.Heal())
			_, _ = n.docker(10*time.Second, "node", "update", "--availability", "active", n.Name)
		}
		if err := s.End(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, from)
		}
		_, err := bed.Docker("volume", "rm", "-f", s.Name)
		must(t, err)
	})
}

func logSizes() map[string]int64 {
	sizes := map[string]int64{}
	for _, n := range bed.Nodes {
		if info, err := os.Stat(n.dir("dockerd.log")); err == nil {
			sizes[n.Name] = info.Size()
		}
	}
	return sizes
}

// said returns what a node's plugin has logged since its engine's log was so long.
func (n *Node) said(from int64) []string {
	data, err := os.ReadFile(n.dir("dockerd.log"))
	if err != nil || int64(len(data)) < from {
		return nil
	}
	var lines []string
	for line := range bytes.Lines(data[from:]) {
		_, said, ok := strings.Cut(string(line), " msg=")
		said, _, ours := strings.Cut(said, " plugin="+n.plugin)
		if ok && ours {
			lines = append(lines, strings.ReplaceAll(strings.Trim(said, `"`), `\"`, `"`))
		}
	}
	return lines
}

func showLogs(t *testing.T, from map[string]int64) {
	for _, n := range bed.Nodes {
		for _, line := range n.said(from[n.Name]) {
			if !strings.Contains(line, "msg=ok op=get") && !strings.Contains(line, "list guards") {
				t.Logf("%s %s", n.Name, line)
			}
		}
	}
}

// waitFor waits for a line of a node's plugin that has all these parts.
func waitFor(t *testing.T, n *Node, from int64, limit time.Duration, parts ...string) string {
	t.Helper()
	var found string
	must(t, tool.Within(limit, func() error {
		for _, line := range n.said(from) {
			all := true
			for _, part := range parts {
				all = all && strings.Contains(line, part)
			}
			if all {
				found = line
				return nil
			}
		}
		return fmt.Errorf("the plugin of %s did not say %q", n.Name, parts)
	}))
	return found
}

// span is a request to a plugin, from its beginning to its end.
type span struct {
	op       string
	from, to time.Time
}

// requests lists those for a volume in a node's log.
func requests(t *testing.T, n *Node, from int64, volume string) (all []span) {
	t.Helper()
	for _, line := range n.said(from) {
		op, is := field(line, "op"), field(line, "volume") == volume
		if op == "" || !is {
			continue
		}
		end, err := time.Parse(time.RFC3339Nano, strings.Trim(field(" "+line, "time"), `"`))
		must(t, err)
		took, err := time.ParseDuration(field(line, "duration"))
		must(t, err)
		all = append(all, span{op, end.Add(-took), end})
	}
	return all
}

// last is the last request of a kind.
func last(t *testing.T, n *Node, from int64, op, volume string) span {
	t.Helper()
	for _, r := range slices.Backward(requests(t, n, from, volume)) {
		if r.op == op {
			return r
		}
	}
	t.Fatalf("%s has no %s of %s in its log", n.Name, op, volume)
	return span{}
}

func field(line, name string) string {
	_, rest, _ := strings.Cut(line, " "+name+"=")
	value, _, _ := strings.Cut(rest, " ")
	return value
}

// busy is how long at least one of the requests was under way between two times.
func busy(all []span, from, to time.Time) (sum time.Duration) {
	slices.SortFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	for _, r := range all {
		if r.from.Before(from) {
			r.from = from
		}
		if r.to.After(to) {
			r.to = to
		}
		if r.to.After(r.from) {
			sum += r.to.Sub(r.from)
			from = r.to
		}
	}
	return sum
}

// nothingStale waits until a node has nothing left of a volume that it lost:
// mount, image server, loop device.
func nothingStale(t *testing.T, n *Node, volume string, clients []string) {
	t.Helper()
	must(t, tool.Within(40*time.Second, func() error {
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.init))
		if err != nil {
			return err
		}
		if strings.Contains(string(mounts), "/volumes/"+volume+" ") {
			return fmt.Errorf("%s still has %s mounted", n.Name, volume)
		}
		loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, loop := range loops {
			file, _ := os.ReadFile(loop) // fails if it has just gone
			for _, c := range clients {
				if _, nonce, _ := strings.Cut(c, "/"); strings.HasSuffix(strings.TrimSpace(string(file)), "/image-"+nonce) {
					return fmt.Errorf("%s is still on %s of client %s", loop, volume, c)
				}
			}
		}
		for _, p := range n.processes() {
			if len(p.args) == 2 && p.args[1] == "serve-image" {
				data, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.pid), "mountinfo"))
				if strings.Contains(string(data), "|"+volume+" ") {
					return fmt.Errorf("%s still serves the image of %s", n.Name, volume)
				}
			}
		}
		return nil
	}))
}
