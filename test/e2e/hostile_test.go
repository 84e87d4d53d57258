package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// request sends a VolumeDriver request with these names, and returns the error
// that the plugin answers.
func request(op string, r map[string]any) (string, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	text, err := ask(limit, "VolumeDriver."+op, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	var answer struct{ Err string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return "", fmt.Errorf("answer %q: %w", text, err)
	}
	return answer.Err, nil
}

// Names and options that are none get a line each, and nothing comes of them.
func TestHostileRequests(t *testing.T) {
	story(t)
	before := strings.Split(ceph(t, "rados", "ls"), "\n")
	files := pluginFiles(t)
	names := []string{
		"", ".", "..", "../../etc", "/etc/passwd", "a/b", "a b", "-rf", "--help", "a\x00b", "a\nb", "a@b", "a,b", "\u00e4\u00f6", "\u202egnp", "'; true",
		"$(id)", strings.Repeat("x", 5000), strings.Repeat("x", 97),
	}
	for _, name := range names {
		for _, op := range []string{"Create", "Mount", "Unmount", "Remove"} {
			said, err := request(op, map[string]any{"Name": name, "ID": "1"})
			if err != nil || said == "" || strings.ContainsAny(said, "\n\x00") || len(said) > 600 || !strings.HasPrefix(said, strings.ToLower(op)) {
				t.Errorf("%s %.40q: answer %q, %v", op, name, said, err)
			}
		}
		if said, err := request("Get", map[string]any{"Name": name}); err != nil || !strings.Contains(said, "not found") {
			t.Errorf("Get %.40q: answer %q, %v", name, said, err)
		}
	}
	for _, opts := range []map[string]any{
		{"size": "-1"}, {"size": "1e99"}, {"size": "10G\n"}, {"fstype": "../ext4"}, {"fstype": "ext4 -F"}, {"mkfsOptions": "/dev/sda"},
		{"mkfsOptions": "-E\x00discard"}, {"mkfsOptions": "-d\n/etc"}, {"mountOptions": "bind,/etc"}, {"mountOptions": "rw -o suid"}, {"mountOptions": "noatime\n"},
		{"mode": "99999"}, {"uid": "root; id"}, {"data-pool": "../rbd"}, {"no such": "option"}, {"size\n": "1G"}, {strings.Repeat("k", 5000): "v"}, {"size": strings.Repeat("9", 5000)},
	} {
		name := unique(t)
		said, err := request("Create", map[string]any{"Name": name, "Opts": opts})
		if err != nil || said == "" || strings.ContainsAny(said, "\n\x00") || len(said) > 900 || !strings.Contains(said, name) {
			t.Errorf("Create with %.60q: answer %q, %v", opts, said, err)
		}
	}
	for _, path := range []string{"VolumeDriver.Create", "VolumeDriver.Mount", "Guard.Fence"} {
		for what, body := range map[string]io.Reader{
			"100 MB": io.LimitReader(endless{}, 100<<20), "no JSON": strings.NewReader("<xml/>"), "another JSON": strings.NewReader(`[1, 2]`),
			"deep JSON": strings.NewReader(strings.Repeat("[", 500_000)),
		} {
			text, err := ask(limit, path, body)
			if err == nil && !strings.Contains(text, `"Err":`) {
				t.Errorf("%s with %s: answer %.100q", path, what, text)
			}
		}
	}
	// A thousand who connect and say nothing keep nobody else waiting.
	var silent []net.Conn
	for range 1000 {
		c, err := net.DialTimeout("unix", filepath.Join("/run/docker/plugins", plugin, "rbd.sock"), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	bounded(t, 5*time.Second, "docker volume ls beside 1,000 silent connections", func() { docker(t, "volume", "ls") })
	for _, c := range silent {
		_ = c.Close()
	}
	// The manager may still delete what another test has removed.
	for object := range strings.Lines(ceph(t, "rados", "ls")) {
		if object = strings.TrimSpace(object); !slices.Contains(before, object) {
			t.Errorf("a new object in the pool: %s", object)
		}
	}
	if now := pluginFiles(t); !slices.Equal(now, files) {
		t.Errorf("files of the plugin: %q, before: %q", now, files)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// pluginFiles are those of the plugin's container.
func pluginFiles(t *testing.T) (found []string) {
	t.Helper()
	for _, dir := range []string{"rootfs", "propagated-mount"} {
		err := filepath.WalkDir(filepath.Join(engine, "data", "plugins", plugin, dir), func(path string, e os.DirEntry, err error) error {
			if e != nil && e.IsDir() && slices.Contains([]string{"proc", "sys", "dev"}, e.Name()) {
				return filepath.SkipDir
			}
			found = append(found, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// Ten thousand requests, five hundred of them while Ceph does not answer, leave
// the plugin as large as it was.
func TestNothingGrows(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M")
	pid, err := pluginPID()
	if err != nil {
		t.Fatal(err)
	}
	var many sync.WaitGroup
	flood := func(requests int, limit time.Duration) {
		next := make(chan int)
		for range 20 {
			many.Go(func() {
				for i := range next {
					switch i % 5 {
					case 0:
						_, _ = ask(limit, "VolumeDriver.List", strings.NewReader("{}"))
					case 1:
						_, _ = ask(limit, "VolumeDriver.Get", strings.NewReader(`{"Name": "`+name+`"}`))
					case 2:
						_, _ = ask(limit, "VolumeDriver.Get", strings.NewReader(fmt.Sprintf(`{"Name": "nobody-%d"}`, i)))
					case 3:
						_, _ = ask(limit, "VolumeDriver.Mount", strings.NewReader(fmt.Sprintf(`{"Name": "nobody-%d", "ID": "1"}`, i)))
					case 4:
						_, _ = ask(limit, "VolumeDriver.Create", strings.NewReader(fmt.Sprintf(`{"Name": "nobody-%d", "Opts": {"size": "none"}}`, i)))
					}
				}
			})
		}
		for i := range requests {
			next <- i
		}
		close(next)
		many.Wait()
	}
	outage := func() {
		resume := pause(t, "osd.0", "mon.a")
		flood(250, 2*time.Second)
		resume()
	}
	flood(2000, limit)
	outage()
	flood(100, limit)
	before := sizeOf(t, pid) // as large as it gets: Go keeps threads that it had need of once
	flood(5000, limit)
	outage()
	flood(2400, limit)
	var now size
	defer func() { t.Logf("figure: 10,000 requests: before %+v, then %+v", before, now) }()
	wait(t, time.Minute, func() error { // what librados still had under way ends within 30 s
		now = sizeOf(t, pid)
		if now.MB > before.MB+15 || now.Threads > before.Threads+20 {
			return fmt.Errorf("the plugin has grown from %+v to %+v", before, now)
		}
		return nil
	})
	equal(t, "in a new container", once(t, name, "echo well"), "well")
}

// size is that of a process.
type size struct{ MB, Threads int }

func sizeOf(t *testing.T, pid int) (s size) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &s.MB); err == nil {
			s.MB /= 1024
		}
		_, _ = fmt.Sscanf(line, "Threads: %d", &s.Threads)
	}
	return s
}
