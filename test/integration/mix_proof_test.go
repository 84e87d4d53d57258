package integration

import (
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// Without any one of these mends the mix finds what was wrong before it: else it would
// mean nothing that it finds nothing. It does more of what shows it than of the rest.
func TestMixFindsEachMendTakenOut(t *testing.T) {
	if os.Getenv("MODEL") != "long" {
		t.Skip("takes minutes: MODEL=long")
	}
	testbed.WatchTimeout(t, 10)
	for _, row := range []struct {
		mend string
		work map[string]int
		says string // the fault, as a regular expression
	}{
		{"guard", map[string]int{"create": 1, "mount": 3, "write": 3, "steal": 3}, "mounted on"},
		{"outage", map[string]int{"create": 2, "mount": 2, "unmount": 2, "get": 2, "bad": 1}, "ceph:unavailable"},
		{"create", map[string]int{"create": 3, "mount": 2, "write": 2, "unmount": 2, "hurt": 3}, "is gone"},
		{"identity", map[string]int{"create": 2, "remove": 2, "mount": 2, "write": 2, "unmount": 1, "mv": 2, "second": 4}, "mounted"},
		{"copy", map[string]int{"create": 1, "mount": 4, "write": 2, "unmount": 4, "snapshot": 1, "unsnapshot": 2, "halfmade": 4, "remove": 4}, "cannot be used as it is"},
		{"restored", map[string]int{"create": 2, "mount": 2, "write": 1, "unmount": 3, "remove": 2, "restore": 2, "trash": 2}, "is not in the trash any more"},
		{"complete", map[string]int{"create": 1, "copy": 3, "mount": 3, "write": 1, "unmount": 3, "late": 3, "remove": 1}, "is not in the trash|was never mounted"},
	} {
		t.Run(row.mend, func(t *testing.T) {
			p := plan{seed: 1, long: 90 * time.Second, work: row.work, names: 8, waits: 20 * time.Second, env: []string{"SABOTAGE=" + row.mend}}
			m := newMix(t, p)
			m.run(p)
			if !m.failed() {
				m.check(rand.New(rand.NewPCG(p.seed, 0)))
			}
			faults := strings.Join(m.faults, "\n")
			if !regexp.MustCompile(row.says).MatchString(faults) {
				t.Fatalf("without this mend it finds %q, and nothing with %q", faults, row.says)
			}
			t.Logf("without it, after %v: %s", time.Since(m.began).Round(time.Second), m.faults[0])
		})
	}
}
