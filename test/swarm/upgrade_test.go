package swarm

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// Docker is upgraded on one node after the other, from Debian bookworm's release
// to trixie's, while a service has its volume there. It comes last: the nodes
// stay with the new one.
func TestUpgradeOfTheEngine(t *testing.T) {
	watchTimeout(t, 10)
	newer := filepath.Join(bed.dir, "newer")
	_, err := tool.Run(5*time.Minute, "../../cmd/packages.sh", "trixie", runtime.GOARCH, newer,
		"docker.io", "tini", "bash", "dash", "coreutils", "hostname", "mount", "curl")
	must(t, err)
	usr, err := filepath.EvalSymlinks(filepath.Join(newer, "usr"))
	must(t, err)
	s := service(t)
	for _, n := range bed.Nodes {
		before, err := n.Docker("version", "-f", "{{.Server.Version}}")
		must(t, err)
		if s.Node() != n {
			_, err := bed.Docker("service", "update", "--detach", "--constraint-add", "node.hostname=="+n.Name, s.Name)
			must(t, err)
			_, err = s.Writes(time.Minute, n.Name)
			must(t, err)
			_, err = bed.Docker("service", "update", "--detach", "--constraint-rm", "node.hostname=="+n.Name, s.Name)
			must(t, err)
		}
		clients, writers := holder(t, n, s.Name), len(s.Writers())
		must(t, n.UpgradeEngine(usr))
		after, err := n.Docker("version", "-f", "{{.Server.Version}}")
		must(t, err)
		if before == after {
			t.Fatalf("the engine of %s is still %s", n.Name, before)
		}
		anew(t, s, writers)
		t.Logf("%s: from %s to %s; the service goes on on %s", n.Name, before, after, s.Node().Name)
		if s.Node() != n {
			nothingStale(t, n, s.Name, clients)
		}
		if out, err := n.Docker("volume", "ls", "-q", "-f", "label=team=red"); err != nil || !strings.Contains(out, s.Name) {
			t.Errorf("docker volume ls on %s does not list %s with its label: %q, %v", n.Name, s.Name, out, err)
		}
	}
	fenced, err := bed.fenced()
	must(t, err)
	clients, dead := holder(t, s.Node(), s.Name), s.Node()
	for _, c := range clients {
		if _, is := fenced[c]; is {
			t.Errorf("the holder %s is fenced", c)
		}
	}
	must(t, dead.Kill()) // and the new release does what the old one did
	takenOver(t, s, dead, clients)
}
