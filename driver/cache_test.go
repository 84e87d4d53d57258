package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

var monday = time.Date(2026, 11, 23, 8, 30, 0, 123456789, time.UTC)

// opened opens a record and keeps what it logs.
func opened(t *testing.T, file string) (*cache, *test.Hook) {
	t.Helper()
	log, hook := test.NewNullLogger()
	return openCache(file, log), hook
}

func wantVolumes(t *testing.T, r *cache, want ...string) {
	t.Helper()
	if got := r.names(); !slices.Equal(got, want) {
		t.Errorf("the cache knows %q, want %q", got, want)
	}
}

func wantCreated(t *testing.T, r *cache, volume string, want time.Time) {
	t.Helper()
	if created, known := r.get(volume); !known || !created.Equal(want) {
		t.Errorf("%s: known %v, created %v; want %v", volume, known, created, want)
	}
}

func wantWarnings(t *testing.T, hook *test.Hook, want int) {
	t.Helper()
	for _, e := range hook.AllEntries() {
		if e.Level != logrus.WarnLevel || strings.Contains(e.Message, "\n") {
			t.Errorf("not one line of warning: %s %q", e.Level, e.Message)
		}
	}
	if n := len(hook.AllEntries()); n != want {
		t.Errorf("%d warnings, want %d", n, want)
	}
}

func TestTheRecordSurvivesAReopen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.json")
	r, hook := opened(t, file)
	wantVolumes(t, r)
	r.put("db2", monday)
	r.put("db1", time.Time{})
	r.note("db1")
	r.note("db2")
	r.put("gone", monday)
	r.remove("gone")
	wantWarnings(t, hook, 0)

	r, hook = opened(t, file)
	wantVolumes(t, r, "db1", "db2")
	wantCreated(t, r, "db2", monday)
	wantCreated(t, r, "db1", time.Time{})
	if _, known := r.get("gone"); known {
		t.Error("a removed volume is known again")
	}
	wantWarnings(t, hook, 0)

	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the cache: %v, %v", entries, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestADamagedRecordIsAnEmptyOne(t *testing.T) {
	for _, row := range []struct{ name, text string }{
		{"empty, as a power failure leaves it", ""},
		{"cut off", `{"db1":"2026-11-23T08:30:00Z","db`},
		{"not JSON", "\x00\x00\x00\x00"},
		{"a list", `["db1"]`},
		{"good and bad entries", `{"db1":"2026-11-23T08:30:00Z","db2":"yesterday"}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cache.json")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			r, hook := opened(t, file)
			wantVolumes(t, r)
			wantWarnings(t, hook, 1)

			r.put("db3", monday)
			r, hook = opened(t, file)
			wantVolumes(t, r, "db3")
			wantWarnings(t, hook, 0)
		})
	}
}

func TestARecordThatSaysNullIsEmpty(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.json")
	if err := os.WriteFile(file, []byte("null"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, _ := opened(t, file)
	r.put("db1", monday)
	wantVolumes(t, r, "db1")
}

func TestReplaceKnowsExactlyTheseAndKeepsWhenTheyWereMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.json")
	r, _ := opened(t, file)
	r.put("db1", monday)
	r.put("db2", monday)
	r.replace([]string{"db2", "db3"})
	for _, when := range []string{"before", "after"} {
		t.Run(when+" a reopen", func(t *testing.T) {
			wantVolumes(t, r, "db2", "db3")
			wantCreated(t, r, "db2", monday)
			wantCreated(t, r, "db3", time.Time{})
		})
		r, _ = opened(t, file)
	}
	r.replace(nil)
	wantVolumes(t, r)
}

// Get and List come all the time: they must not wear out the disk.
func TestWhatIsKnownAlreadyIsNotWrittenAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.json")
	r, _ := opened(t, file)
	r.put("db1", monday)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.put("db1", monday.Local())
	r.remove("db2")
	r.replace([]string{"db1"})
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("written again: %v", err)
	}
}

func TestADirectoryThatCannotBeWrittenOnlyWarns(t *testing.T) {
	// Root may write whatever the mode says; nobody may in a directory that is none.
	r, hook := opened(t, filepath.Join(t.TempDir(), "missing", "cache.json"))
	wantWarnings(t, hook, 0)
	r.put("db1", monday)
	wantCreated(t, r, "db1", monday)
	wantVolumes(t, r, "db1")
	wantWarnings(t, hook, 1)
}

func TestTheRecordTakesManyChangesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache.json")
	r, hook := opened(t, file)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			name := fmt.Sprintf("db%02d", i)
			r.put(name, monday)
			r.get(name)
			r.names()
			if i%2 == 1 {
				r.remove(name)
			}
		})
	}
	group.Wait()
	wantWarnings(t, hook, 0)
	again, _ := opened(t, file)
	if got, want := again.names(), r.names(); !slices.Equal(got, want) || len(got) != 10 {
		t.Errorf("on disk %q, in memory %q", got, want)
	}
}
