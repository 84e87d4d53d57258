package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// outages are the ways in which Ceph is away, and what the user is told.
var outages = []struct {
	name  string
	begin func(t *testing.T) (end func())
	says  []string // by create, and by the status of a volume; nil = nothing fails
}{
	{"the monitors hang", func(t *testing.T) func() { return pause(t, "mon.a") }, nil}, // whoever is connected goes on
	{"the OSDs hang", func(t *testing.T) func() { return pause(t, "osd.0") }, []string{"no answer in time; the monitors say HEALTH_"}},
	{"all of it hangs", func(t *testing.T) func() { return pause(t, "osd.0", "mon.a") }, []string{"no monitor answers", "mon_host = ", "is ceph running?"}},
	{"the cluster is paused", func(t *testing.T) func() {
		osds := func(what string) {
			if _, err := command(limit, "ceph", "-c", filepath.Join(cluster, "ceph.conf"), "osd", what); err != nil {
				t.Fatal(err)
			}
		}
		osds("pause")
		return func() { osds("unpause") }
	}, []string{"pauserd,pausewr flag(s) set"}},
}

// Whatever is wrong with Ceph, Docker stays as fast as ever but for the first
// question, forgets nothing, and says what is wrong; and all is well by itself
// when Ceph is.
func TestOutages(t *testing.T) {
	story(t)
	name, idle := volumeName(t), volumeName(t)
	for _, v := range []string{name, idle} {
		docker(t, "volume", "create", "-d", "rbd", "-o", "size=64M", "--label", "team=blue", v)
	}
	once(t, idle, "echo kept >/data/file")
	c := container(t, on(name))
	write(t, c, "zero")
	usual := questions(t, c, name, idle)
	for i, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			end := sync.OnceFunc(o.begin(t))
			t.Cleanup(end)
			began := time.Now()
			written := make(chan error, 1)
			go func() {
				_, err := try(synced(c, fmt.Sprint(i))...)
				written <- err
			}()
			inspect(t, name) // finds out
			t.Logf("figure: %s: docker volume inspect has found out after %d ms", o.name, time.Since(began).Milliseconds())
			slowest := questions(t, c, name, idle)
			for what, took := range slowest {
				t.Logf("figure: %s: %s takes at most %d ms, otherwise %d ms", o.name, what, took.Milliseconds(), usual[what].Milliseconds())
				if took > usual[what]+4*time.Second { // asked more than once, it would be more if each waited
					t.Errorf("%s took %v", what, took)
				}
			}
			if o.says == nil {
				return
			}
			contains(t, "status", fmt.Sprint(inspect(t, name).Status["ceph"]), append(o.says, "unavailable")...)
			began = time.Now()
			said, err := request("Create", map[string]any{"Name": volumeName(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("figure: %s: create fails after %.1f s: %s", o.name, time.Since(began).Seconds(), said)
			contains(t, "create", said, append(o.says, "create volume")...)
			select {
			case err := <-written:
				t.Errorf("a write ended during the outage: %v", err)
			default:
			}

			end()
			began = time.Now()
			wait(t, time.Minute, func() error {
				if v := inspect(t, name); v.Status["ceph"] != nil {
					return fmt.Errorf("status: %v", v.Status)
				}
				return nil
			})
			if err := <-written; err != nil {
				t.Errorf("the write under way: %v", err)
			}
			equal(t, "in a new container", once(t, idle, "cat /data/file"), "kept")
			t.Logf("figure: %s: all is well %.1f s after its end", o.name, time.Since(began).Seconds())
			equal(t, "in the container", in(t, c, "cat /data/file"), fmt.Sprint(i))
		})
	}
}

// questions asks Docker what does not need Ceph, and returns the longest time of
// each kind.
func questions(t *testing.T, container string, volumes ...string) map[string]time.Duration {
	t.Helper()
	slowest := map[string]time.Duration{}
	took := func(what string, fn func()) {
		began := time.Now()
		fn()
		slowest[what] = max(slowest[what], time.Since(began))
	}
	for range 3 {
		took("docker ps", func() { contains(t, "docker ps", docker(t, "ps", "--format={{.Names}}"), container) })
		took("docker volume ls", func() {
			for _, v := range volumes {
				if !listed(t, v, "label=team=blue") {
					t.Errorf("docker volume ls does not list %s with its label", v)
				}
			}
		})
		took("docker volume inspect", func() {
			for _, v := range volumes {
				equal(t, "option of "+v, inspect(t, v).Options["size"], "64M")
			}
		})
		took("docker run with a local volume", func() {
			docker(t, "run", "--rm", "--network=none", "-v", prefix+"-local:/data", image, "true")
		})
	}
	return slowest
}

// pause stops daemons of Ceph as a hanging network would, until resume or the
// end of the test.
func pause(t *testing.T, daemons ...string) (resume func()) {
	t.Helper()
	var pids []int
	for _, daemon := range daemons {
		pid, err := daemonPID(daemon)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	signal := func(s syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil {
				t.Errorf("signal %v to %d: %v", s, pid, err)
			}
		}
	}
	resume = sync.OnceFunc(func() {
		signal(syscall.SIGCONT)
		// A lone OSD that has slept through its read lease may leave PGs "laggy" for
		// ever (seen with 16.2). Told that it was down, it peers anew, though not
		// more than five times in ten minutes if that is not allowed.
		conf := filepath.Join(cluster, "ceph.conf")
		if _, err := command(10*time.Second, "rados", "-c", conf, "-p", "rbd", "ls"); err == nil {
			return
		}
		for _, args := range [][]string{
			{"config", "set", "osd", "osd_max_markdown_count", "1000"},
			{"osd", "down", "osd.0"},
		} {
			wait(t, limit, func() error {
				_, err := command(10*time.Second, "ceph", append([]string{"-c", conf}, args...)...)
				return err
			})
		}
	})
	t.Cleanup(resume)
	signal(syscall.SIGSTOP)
	return resume
}

// daemonPID is that of one of this cluster's.
func daemonPID(daemon string) (int, error) {
	text, err := os.ReadFile(filepath.Join(cluster, daemon+".pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && !strings.Contains(string(cmdline), filepath.Join(cluster, "ceph.conf")) {
		err = errors.New("it is another's")
	}
	if err != nil {
		return 0, fmt.Errorf("process %d is no %s of this cluster: %w", pid, daemon, err)
	}
	return pid, nil
}
