package plugin_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

func TestSnapshots(t *testing.T) {
	var asked string
	var trouble error
	note := func(op string) func(context.Context, string, string) error {
		return func(_ context.Context, name, snapshot string) error {
			asked = op + " " + name + "@" + snapshot
			return trouble
		}
	}
	var all []backend.Snapshot
	c := serve(t, fake{
		snapshots: func(_ context.Context, name string) ([]backend.Snapshot, error) {
			return all, note("list")(t.Context(), name, "")
		},
		snap:   func(ctx context.Context, name, snap string) (bool, error) { return true, note("make")(ctx, name, snap) },
		unsnap: note("remove"), rollback: note("roll back"),
	})
	for _, row := range []struct{ path, body, answer, asked string }{
		{"Snapshot.List", `{"volume":"db"}`, `{"snapshots":[]}`, "list db@"},
		{"Snapshot.Create", `{"volume":"db","snapshot":"monday"}`, `{"snapshot":"monday","frozen":true}`, "make db@monday"},
		{"Snapshot.Remove", `{"volume":"db","snapshot":"monday"}`, `{}`, "remove db@monday"},
		{"Snapshot.Rollback", `{"volume":"db","snapshot":"monday"}`, `{}`, "roll back db@monday"},
	} {
		c.want(row.path, row.body, 200, row.answer)
		if asked != row.asked {
			t.Errorf("%s: asked to %q, want %q", row.path, asked, row.asked)
		}
	}
	all = []backend.Snapshot{{Name: "monday", ID: 4, Size: 1 << 20, Created: time.Unix(1e9, 0)}}
	c.want("Snapshot.List", `{"volume":"db"}`, 200, `{"snapshots":[{"snapshot":"monday","size":1048576,"created":"2001-09-09T01:46:40Z"}]}`)
	trouble = errors.New("no luck")
	c.want("Snapshot.Create", `{"volume":"db","snapshot":"monday"}`, 500, `{"Err":"no luck"}`)
	c.want("Snapshot.Rollback", `db`, 500, `{"Err":"invalid request: not the JSON of docker's volume plugin protocol: invalid character 'd' looking for beginning of value"}`)
}
