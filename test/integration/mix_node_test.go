package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// mixNode is a node whose plugin dies now and then.
type mixNode struct {
	*plugin
	keep   time.Duration // in the trash
	deaths atomic.Int64  // of its image servers

	mu sync.Mutex // one kill at a time
}

// newMixNode starts a node. Env is what takes its mends out.
func newMixNode(t *testing.T, cfg rbd.Config, name string, keep time.Duration, env []string) *mixNode {
	t.Helper()
	n := &mixNode{plugin: unstarted(t, cfg, name), keep: keep}
	n.env = env
	n.settings = []string{"VOLUME_TRASH=" + keep.String(), "VOLUME_SIZE=24M", "LOG_LEVEL=info"}
	t.Cleanup(func() {
		n.mu.Lock() // a kill may be under way
		if n.cmd != nil {
			n.stop(unix.SIGTERM)
		}
		n.mu.Unlock()
		n.killServers()
		n.clear()
		if t.Failed() {
			log, _ := os.ReadFile(n.log)
			t.Logf("the end of the log of node %s:\n%s", name, log[max(0, len(log)-5000):])
		}
	})
	n.start()
	return n
}

// kill ends the plugin as kill -9 does and starts it again: with its image servers, as
// they end with the plugin's container, or without.
func (n *mixNode) kill(servers bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil
	}
	if servers {
		n.deaths.Add(1)
	}
	n.stop(unix.SIGKILL)
	if servers {
		n.killServers()
	}
	return n.launch()
}

// watch starts plugins again that have ended by themselves, as dockerd does. If Go ended
// them it is a fault. Librbd does so, too, when it closes images (16.2.15, on a machine with
// far too much to do, once in 1000 mounts: "terminate called after throwing an instance of
// 'std::system_error'", or an assertion in ~AsyncOpTracker), and then all must be as after a kill.
func (m *mix) watch(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Millisecond):
		}
		for _, n := range m.nodes {
			if err := n.revive(m); err != nil {
				m.fault(nil, "node %s does not come back: %v", n.name, err)
			}
		}
	}
}

func (n *mixNode) revive(m *mix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil || !strings.Contains(string(stat), ") Z ") {
		return err
	}
	n.stop(unix.SIGKILL)
	words := lastWords(n.log)
	m.note(nil, "the plugin of %s ended by itself: %s", n.name, words)
	m.t.Logf("%8.3fs the plugin of %s ended by itself: %s", time.Since(m.began).Seconds(), n.name, words)
	if strings.HasPrefix(words, "panic:") || strings.HasPrefix(words, "fatal error:") {
		m.fault(nil, "the plugin of %s ended by itself", n.name)
	}
	return n.launch()
}

// lastWords are what a process says that is ended by Go, by the C++ library or by a signal.
func lastWords(log string) string {
	text, _ := os.ReadFile(log)
	at := regexp.MustCompile(`(?m)^(panic:|fatal error:|SIG[A-Z]+: |terminate called|.*ceph_assert)`).FindAllIndex(text, -1)
	if at == nil {
		return string(text[max(0, len(text)-300):])
	}
	begin := at[len(at)-1][0]
	return string(text[begin:min(len(text), begin+2000)])
}

// killServers ends those that have come up far enough to hold their lock; one on its
// way ends by itself when it finds nobody to tell.
func (n *mixNode) killServers() {
	locks, _ := filepath.Glob(filepath.Join(n.run, "*.lock"))
	for _, lock := range locks {
		text, _ := os.ReadFile(lock)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if pid <= 1 {
			continue
		}
		// The file outlives a server that was killed, and the number may be another's.
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(line), "serve-image") {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// clear takes away by force what a test that failed leaves of mounts.
func (n *mixNode) clear() {
	for _, device := range testbed.Loops(n.tb, n.run) {
		defer func() { _ = exec.Command("losetup", "-d", device).Run() }()
	}
	for _, dir := range []string{filepath.Join(n.root, "volumes"), n.run} {
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			_ = unix.Unmount(filepath.Join(dir, f.Name()), unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
			_ = unix.Unmount(filepath.Join(dir, f.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
}

// leftovers are mappings, loop devices and mounts of the node. Of a server that was just
// ending when its plugin was killed the empty directory stays, until the next start or mount.
func (n *mixNode) leftovers(t *testing.T) (left []string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for _, dir := range []string{n.run, filepath.Join(n.root, "volumes")} {
		left = append(left, testbed.Loops(t, dir)...)
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if dir != n.run || strings.Contains(string(mounts), " "+path+" ") {
				left = append(left, path)
			}
		}
	}
	return left
}

// executioner kills plugins, though not so often that nothing else comes about.
type executioner struct {
	mu           sync.Mutex
	next         time.Time // not before
	every        time.Duration
	kills, whole int
}

// may tells whether it is time, and whether the image servers go, too.
func (e *executioner) may(r *rand.Rand) (kill, servers bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.every == 0 || time.Now().Before(e.next) {
		return false, false
	}
	e.next = time.Now().Add(e.every/2 + time.Duration(r.Int64N(int64(e.every))))
	servers = r.IntN(4) == 0
	e.kills++
	if servers {
		e.whole++
	}
	return true, servers
}
