package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// outage is a way in which Ceph is away, and what the user is told. nil = nothing
// is wrong there.
type outage struct {
	name   string
	begin  func(t *testing.T) (end func())
	stands bool     // so does the I/O of containers
	cuts   bool     // containers have lost their volume
	status []string // of a volume
	create []string // and what docker volume create says
	mount  []string
	early  []string // what all of them say if the plugin was started in it
	nights bool     // that is for the nights: another one goes the same way
}

var (
	noMonitor = []string{"no monitor answers", "mon_host = ", "is ceph running?"}
	noOSD     = []string{"no answer in time; the monitors say HEALTH_"}
	paused    = []string{"pauserd,pausewr flag(s) set"}
	noPool    = []string{`pool "rbd": ceph cannot be asked: the cluster has no pool of this name`, "setting RBD_CONF_POOL"}
	full      = []string{"the cluster or the pool is full", "see ceph df"}
	noKey     = []string{"connect as client.docker: the cluster does not accept the key"}

	outages = []outage{
		{name: "the monitors hang", begin: func(t *testing.T) func() { return pause(t, "mon.a") }, early: noMonitor, nights: true}, // who is connected goes on
		{name: "the monitors are gone", begin: monitorsGone, early: noMonitor},
		{
			name: "the OSDs hang", begin: func(t *testing.T) func() { return pause(t, "osd.0") },
			stands: true, status: noOSD, create: noOSD, mount: noOSD, early: noOSD,
		},
		{
			name: "all of it hangs", begin: func(t *testing.T) func() { return pause(t, "osd.0", "mon.a") },
			stands: true, status: noMonitor, create: noMonitor, mount: noMonitor, early: noMonitor,
		},
		{
			name: "the cluster is paused", begin: func(t *testing.T) func() { return during(t, []string{"osd", "pause"}, []string{"osd", "unpause"}) },
			stands: true, status: paused, create: paused, mount: paused, early: paused, nights: true,
		},
		{
			name: "the cluster is full", begin: func(t *testing.T) func() {
				fill(t, "full")
				return func() { fill(t, "none") }
			},
			create: full, mount: full,
		},
		{name: "the key is another", begin: anotherKey, mount: noKey, early: noKey}, // who is connected goes on, for an hour
		{
			name: "the pool has gone", begin: func(t *testing.T) func() { // and with its name the caps
				return during(t, []string{"osd", "pool", "rename", "rbd", "elsewhere"}, []string{"osd", "pool", "rename", "elsewhere", "rbd"})
			},
			cuts: true, status: noPool, create: noPool, mount: noPool, early: noPool,
		},
	}
)

// admin asks the cluster with the admin's key.
func admin(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(limit, "ceph", append([]string{"-c", filepath.Join(cluster, "ceph.conf")}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// during asks it to begin something, and to end it.
func during(t *testing.T, begin, end []string) func() {
	admin(t, begin...)
	return func() { admin(t, end...) }
}

// fill makes the OSD believe that it is full, or not, and waits until all know.
func fill(t *testing.T, state string) {
	t.Helper()
	admin(t, "tell", "osd.0", "injectfull", state, "1000000")
	wait(t, limit, func() error {
		if now := admin(t, "health", "--format", "json"); strings.Contains(now, `"POOL_FULL"`) != (state == "full") {
			return fmt.Errorf("health is %s", now)
		}
		return nil
	})
}

func monitorsGone(t *testing.T) func() {
	do := func(what string) {
		if _, err := sh("cluster.sh", what, cluster, "mon.a"); err != nil {
			t.Error(err)
		}
	}
	do("kill")
	return func() { do("boot") }
}

// anotherKey gives the plugin's user a new key, which the nodes do not have.
func anotherKey(t *testing.T) func() {
	old, other := filepath.Join(cluster, "ceph.client.docker.keyring"), filepath.Join(t.TempDir(), "keyring")
	if _, err := command(limit, "ceph-authtool", "-C", other, "-n", "client.docker", "--gen-key",
		"--cap", "mon", "profile rbd", "--cap", "osd", "profile rbd pool=rbd", "--cap", "mgr", "profile rbd pool=rbd"); err != nil {
		t.Fatal(err)
	}
	admin(t, "auth", "import", "-i", other)
	return func() { admin(t, "auth", "import", "-i", old) }
}

// fails wants a request to the plugin to fail within Docker's shortest deadline,
// for these reasons.
func fails(t *testing.T, when, method string, body map[string]any, says []string) {
	t.Helper()
	began := time.Now()
	said, err := request(method, body)
	took := time.Since(began)
	if err != nil {
		t.Errorf("%s: %v", method, err)
		return
	}
	t.Logf("figure: %s: %s fails after %.1f s: %s", when, strings.ToLower(method), took.Seconds(), said)
	for _, part := range says {
		if !strings.Contains(said, part) {
			t.Errorf("%s: %q is missing in %q", method, part, said)
		}
	}
	if took > 29*time.Second && took > stretch(20*time.Second, tool.Slowness()) { // it has 5 s, and a little for what is undone
		t.Errorf("%s took %v", method, took)
	}
}

// refused wants Create and Mount to fail, if they have reason to.
func (o outage) refused(t *testing.T, create, mount []string, volume string) {
	t.Helper()
	var both sync.WaitGroup
	if create != nil {
		fresh := volumeName(t)
		both.Go(func() { fails(t, o.name, "Create", map[string]any{"Name": fresh}, append(create, "create volume")) })
	}
	if mount != nil {
		both.Go(func() {
			fails(t, o.name, "Mount", map[string]any{"Name": volume, "ID": "1"}, append(mount, "mount volume"))
		})
	}
	both.Wait()
}

// well waits until a new container has the volume, which needs nobody's help.
func well(t *testing.T, when, volume string) {
	t.Helper()
	began := time.Now()
	wait(t, time.Minute, func() error {
		if v := inspect(t, volume); v.Status["ceph"] != nil {
			return fmt.Errorf("status: %v", v.Status)
		}
		_, err := try("run", "--rm", "--network=none", on(volume), image, "cat", "/data/file")
		return err
	})
	t.Logf("figure: %s: all is well %.1f s after its end", when, time.Since(began).Seconds())
	equal(t, "in a new container", once(t, volume, "cat /data/file"), "kept")
	equal(t, "status device, as nobody uses it", inspect(t, volume).Status["device"], nil)
}

// faster fails if what does not need Ceph takes longer than it should, each time
// that it is asked for: a machine may be busy once.
func faster(t *testing.T, when string, took, usual map[string][]time.Duration) {
	t.Helper()
	for what, took := range took {
		most := slices.Max(usual[what])
		t.Logf("figure: %s: %s takes at most %d ms, otherwise %d ms", when, what, slices.Max(took).Milliseconds(), most.Milliseconds())
		if slices.Min(took) > 2*most+stretch(2*time.Second, tool.Slowness()) {
			t.Errorf("%s took %v", what, took)
		}
	}
}

// Whatever is wrong with Ceph, Docker stays as fast as ever but for the first
// question, forgets nothing, and says what is wrong; and all is well by itself
// when Ceph is.
func TestOutages(t *testing.T) {
	story(t)
	name, idle := labelled(t), labelled(t)
	once(t, idle, "echo kept >/data/file")
	c := container(t, on(name))
	write(t, c, "zero")
	usual := questions(t, name, idle)
	for i, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			if o.cuts {
				docker(t, "stop", c)
			}
			end := sync.OnceFunc(o.begin(t))
			t.Cleanup(end)
			began := time.Now()
			written := make(chan error, 1)
			go func() {
				var err error
				if !o.cuts {
					_, err = try(synced(c, fmt.Sprint(i))...)
				}
				written <- err
			}()
			inspect(t, name) // finds out
			t.Logf("figure: %s: docker volume inspect has found out after %d ms", o.name, time.Since(began).Milliseconds())
			faster(t, o.name, questions(t, name, idle), usual)
			contains(t, "docker ps", docker(t, "ps", "-a", "--format={{.Names}}"), c)
			if o.status != nil {
				contains(t, "status", fmt.Sprint(inspect(t, name).Status["ceph"]), append(o.status, "unavailable")...)
			}
			o.refused(t, o.create, o.mount, idle)
			if o.stands {
				select {
				case err := <-written:
					t.Errorf("a write ended during the outage: %v", err)
				default:
				}
			}
			end()
			well(t, o.name, idle)
			if err := <-written; err != nil {
				t.Errorf("the write under way: %v", err)
			}
			if o.cuts {
				docker(t, "start", c)
				write(t, c, fmt.Sprint(i))
			}
			equal(t, "in the container", in(t, c, "cat /data/file"), fmt.Sprint(i))
		})
	}
}

// The same when the plugin is started in the outage, as after a power cut; and so
// is the engine.
func TestStartInAnOutage(t *testing.T) {
	story(t)
	name := labelled(t)
	once(t, name, "echo kept >/data/file")
	always := container(t, "--restart=always", on(newVolume(t, "size=64M")))
	write(t, always, "always")
	restart := func() time.Duration {
		began := time.Now()
		if _, err := sh("engine.sh", "restart", engine); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	usual := questions(t, name)
	usually := restart()
	for _, o := range outages {
		if o.early == nil || o.nights && os.Getenv("MODEL") != "long" {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			docker(t, "plugin", "disable", "-f", pluginName)
			t.Cleanup(enable)
			end := sync.OnceFunc(o.begin(t))
			t.Cleanup(end)
			when := "started when " + o.name
			bounded(t, 9*time.Second, "docker plugin enable", func() { docker(t, "plugin", "enable", pluginName) })
			inspect(t, name) // finds out
			took := questions(t, name)
			contains(t, "status", fmt.Sprint(inspect(t, name).Status["ceph"]), append(o.early, "unavailable")...)
			o.refused(t, o.early, o.early, name)
			lasted := restart() // in which the plugin finds out again
			t.Logf("figure: %s: a restart of the engine takes %d ms, otherwise %d ms", when, lasted.Milliseconds(), usually.Milliseconds())
			if lasted > 2*usually+stretch(8*time.Second, tool.Slowness()) {
				t.Errorf("a restart of the engine took %v", lasted)
			}
			inspect(t, name)
			faster(t, when, took, usual)
			faster(t, when+", after that", questions(t, name), usual)
			end()
			well(t, when, name)
			// Docker has tried it once, when it started (20.10); a service would be tried again.
			equal(t, "the container that restarts always runs", docker(t, "inspect", "-f", "{{.State.Running}}", always), "false")
			docker(t, "start", always)
			equal(t, "in it", in(t, always, "cat /data/file"), "always")
		})
	}
}

// labelled makes a volume with a label.
func labelled(t *testing.T) string {
	t.Helper()
	name := volumeName(t)
	docker(t, "volume", "create", "-d", "rbd", "-o", "size=64M", "--label", "team=blue", name)
	return name
}

// questions asks Docker, three times, what does not need Ceph.
func questions(t *testing.T, volumes ...string) map[string][]time.Duration {
	t.Helper()
	all := map[string][]time.Duration{}
	took := func(what string, fn func()) {
		began := time.Now()
		fn()
		all[what] = append(all[what], time.Since(began))
	}
	for range 3 {
		took("docker ps", func() { docker(t, "ps") })
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
	return all
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
		if _, err := command(4*time.Second, "rados", "-c", conf, "-p", "rbd", "ls"); err == nil {
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
