package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/plugin"
)

// To dockerd any error of Get, List or Path means that there is no such volume: it
// forgets it. So only the one that says so may be told.
func TestWhatDockerdMayBeTold(t *testing.T) {
	faults := map[error]bool{backend.ErrNoVolume: true}
	for _, fault := range []error{
		backend.ErrNotFound, backend.ErrExists, backend.ErrAmbiguous, backend.ErrInvalid, backend.ErrBusy, backend.ErrInUse, backend.ErrConflict,
		backend.ErrUnavailable, backend.ErrDenied, backend.ErrOverloaded, backend.ErrUnusable, backend.ErrNotPropagated, backend.ErrUnexpectedContent,
		context.DeadlineExceeded, context.Canceled, errors.New("no idea"), &backend.PanicError{Value: "nil map"},
	} {
		faults[fault] = false
	}
	for fault, told := range faults {
		t.Run(fault.Error(), func(t *testing.T) {
			wrapped := fmt.Errorf("get volume db1: %w", fault)
			for kind, d := range map[string]plugin.Driver{
				"": fake{
					t:    t,
					get:  func(context.Context, string) (driver.Volume, error) { return driver.Volume{Name: "db1"}, wrapped },
					list: func(context.Context) ([]driver.Volume, error) { return nil, wrapped },
				},
				"broken settings": plugin.Broken{Reason: fmt.Errorf("setting VOLUME_SIZE=10X: %w", backend.ErrInvalid)},
			} {
				c := serveDriver(t, d)
				if told && kind == "" {
					c.want("VolumeDriver.Get", `{"Name":"db1"}`, 500, fmt.Sprintf(`{"Err":"get volume db1: %v"}`, fault))
					c.want("VolumeDriver.List", `{}`, 500, fmt.Sprintf(`{"Err":"get volume db1: %v"}`, fault))
					continue
				}
				c.wantHangUp("VolumeDriver.Get", `{"Name":"db1"}`)
				c.wantHangUp("VolumeDriver.List", `{}`)
			}
		})
	}
}

// A fault of the plugin's own in one request is an error of that request, and no "no
// such volume" either; its stack is in the log.
func TestAPanicInARequest(t *testing.T) {
	broken := func() { panic(fmt.Errorf("assignment to entry in nil map")) }
	c := serve(t, fake{
		get:    func(context.Context, string) (driver.Volume, error) { broken(); return driver.Volume{}, nil },
		path:   func(context.Context, string) string { broken(); return "" },
		create: func(context.Context, string, map[string]string) error { broken(); return nil },
	})
	c.wantHangUp("VolumeDriver.Get", `{"Name":"db1"}`)
	c.wantHangUp("VolumeDriver.Path", `{"Name":"db1"}`)
	c.want("VolumeDriver.Create", `{"Name":"db1"}`, 500,
		`{"Err":"a fault of the plugin, please report it with the stack in its log: assignment to entry in nil map"}`)
	for _, line := range c.lines(3) {
		if stack, _ := line.Data["stack"].(string); !strings.Contains(stack, "TestAPanicInARequest") {
			t.Errorf("logged without its stack: %v", line.Data)
		}
	}
}

// answered sends one request to a handler and tells when it was answered, 0 = hung up.
func answered(t *testing.T, d plugin.Driver, log logrus.FieldLogger, path, body string) (after time.Duration, status int, said string) {
	start := time.Now()
	w := httptest.NewRecorder()
	defer func() {
		if met := recover(); met != nil {
			if err, ok := met.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(met)
			}
		}
	}()
	(&plugin.Server{Driver: d, Log: log}).Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body)))
	return time.Since(start), w.Code, w.Body.String()
}

// Whatever a driver does with its time, undoing included, Docker gets an answer while it
// still waits for one; a mount that comes to its end later is kept for who asks again.
func TestAnAnswerInsideDockersTime(t *testing.T) {
	for _, row := range []struct {
		path   string
		docker time.Duration
	}{{"Create", 2 * time.Minute}, {"Mount", 2 * time.Minute}, {"Unmount", time.Minute}, {"Remove", time.Minute}} {
		t.Run(row.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stubborn := func() { time.Sleep(10 * time.Minute) }
				kept := 0
				log, hook := test.NewNullLogger()
				d := fake{
					t:      t,
					create: func(context.Context, string, map[string]string) error { stubborn(); return backend.ErrBusy },
					mount:  func(context.Context, string, string) (string, error) { stubborn(); return "/volumes/db1", nil },
					keep: func(_ context.Context, name, id string) {
						if kept++; name != "db1" || id != "a" {
							t.Errorf("kept %s %s", name, id)
						}
					},
					unmount: func(context.Context, string, string) error { stubborn(); return nil },
					remove:  func(context.Context, string) error { stubborn(); return nil },
				}
				after, status, said := answered(t, d, log, "/VolumeDriver."+row.path, `{"Name":"db1","ID":"a"}`)
				if after > row.docker-3*time.Second || after < row.docker-6*time.Second || status != 500 || !strings.Contains(said, "not come to its end in time") {
					t.Errorf("%d %s after %v", status, said, after)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if row.path == "Mount" && kept != 1 {
					t.Errorf("kept %d times", kept)
				}
				if last := hook.LastEntry(); last == nil || last.Data["late"] != true {
					t.Errorf("its end is not in the log: %v", last)
				}
			})
		})
	}
}
