package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

func TestOperator(t *testing.T) {
	held := []guard.Status{{Volume: "db", Alive: true, Record: guard.Record{
		Node: "one", Boot: "b", State: "mapped", Addrs: []string{"10.0.0.1:0/7"}, Since: time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC),
	}}}
	const db = `[{"volume":"db","node":"one","boot":"b","state":"mapped","addrs":["10.0.0.1:0/7"],"since":"2026-11-22T08:00:00Z","alive":true}]`
	var all []guard.Status
	var trouble error
	asked := ""
	c := serve(t, fake{
		guardStatus: func(context.Context) ([]guard.Status, error) { return all, trouble },
		fenceNode: func(_ context.Context, node, address string) ([]guard.Status, error) {
			asked = node + " " + address
			return all, trouble
		},
	})
	c.want("Guard.List", "", 200, `{"guards":[]}`)
	all = held
	c.want("Guard.List", "{}", 200, `{"guards":`+db+`}`)
	c.want("Guard.Fence", `{"node":"one"}`, 200, `{"guards":`+db+`}`)
	if asked != "one " {
		t.Errorf("asked for node %q", asked)
	}
	c.want("Guard.Fence", `{"node":"one","address":"10.0.0.1"}`, 200, `{"guards":`+db+`}`)
	if asked != "one 10.0.0.1" {
		t.Errorf("asked for node %q", asked)
	}
	trouble = errors.New("half of it does not work")
	c.want("Guard.List", "", 200, `{"guards":`+db+`,"Err":"half of it does not work"}`)
	c.want("Guard.Fence", `{"node":"one"}`, 200, `{"guards":`+db+`,"Err":"half of it does not work"}`)
	all, trouble = nil, fmt.Errorf("fence node two: %w request: two is this very node", backend.ErrInvalid)
	c.want("Guard.Fence", `{"node":"two"}`, 500, `{"Err":"fence node two: invalid request: two is this very node"}`)
	c.want("Guard.Fence", `two`, 500, `{"Err":"invalid request: not the JSON of docker's volume plugin protocol: invalid character 'w' in literal true (expecting 'r')"}`)
}
