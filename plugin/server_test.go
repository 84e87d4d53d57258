package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/plugin"
)

// fake is a Driver of functions. Calling one that is not set fails the test.
type fake struct {
	t       testing.TB
	create  func(ctx context.Context, name string, opts map[string]string) error
	get     func(ctx context.Context, name string) (driver.Volume, error)
	list    func(ctx context.Context) ([]driver.Volume, error)
	path    func(ctx context.Context, name string) string
	mount   func(ctx context.Context, name, id string) (string, error)
	keep    func(ctx context.Context, name, id string)
	unmount func(ctx context.Context, name, id string) error
	remove  func(ctx context.Context, name string) error

	guardStatus func(ctx context.Context) ([]guard.Status, error)
	fenceNode   func(ctx context.Context, node, address string) ([]guard.Status, error)

	snapshots func(ctx context.Context, name string) ([]backend.Snapshot, error)
	snap      func(ctx context.Context, name, snapshot string) (bool, error)
	unsnap    func(ctx context.Context, name, snapshot string) error
	rollback  func(ctx context.Context, name, snapshot string) error
}

var _ plugin.Driver = fake{}

var errUnexpected = errors.New("unexpected call")

func (f fake) unexpected(call ...string) { f.t.Errorf("unexpected call of %q", call) }

func (f fake) Create(ctx context.Context, name string, opts map[string]string) error {
	if f.create == nil {
		f.unexpected("Create", name)
		return errUnexpected
	}
	return f.create(ctx, name, opts)
}

func (f fake) Get(ctx context.Context, name string) (driver.Volume, error) {
	if f.get == nil {
		f.unexpected("Get", name)
		return driver.Volume{}, errUnexpected
	}
	return f.get(ctx, name)
}

func (f fake) List(ctx context.Context) ([]driver.Volume, error) {
	if f.list == nil {
		f.unexpected("List")
		return nil, errUnexpected
	}
	return f.list(ctx)
}

func (f fake) Path(ctx context.Context, name string) string {
	if f.path == nil {
		f.unexpected("Path", name)
		return ""
	}
	return f.path(ctx, name)
}

func (f fake) Mount(ctx context.Context, name, id string) (string, error) {
	if f.mount == nil {
		f.unexpected("Mount", name, id)
		return "", errUnexpected
	}
	return f.mount(ctx, name, id)
}

func (f fake) Keep(ctx context.Context, name, id string) {
	if f.keep == nil {
		f.unexpected("Keep", name, id)
		return
	}
	f.keep(ctx, name, id)
}

func (f fake) Unmount(ctx context.Context, name, id string) error {
	if f.unmount == nil {
		f.unexpected("Unmount", name, id)
		return errUnexpected
	}
	return f.unmount(ctx, name, id)
}

func (f fake) Remove(ctx context.Context, name string) error {
	if f.remove == nil {
		f.unexpected("Remove", name)
		return errUnexpected
	}
	return f.remove(ctx, name)
}

func (f fake) GuardStatus(ctx context.Context) ([]guard.Status, error) {
	if f.guardStatus == nil {
		f.unexpected("GuardStatus")
		return nil, errUnexpected
	}
	return f.guardStatus(ctx)
}

func (f fake) FenceNode(ctx context.Context, node, address string) ([]guard.Status, error) {
	if f.fenceNode == nil {
		f.unexpected("FenceNode", node)
		return nil, errUnexpected
	}
	return f.fenceNode(ctx, node, address)
}

func (f fake) Snapshots(ctx context.Context, name string) ([]backend.Snapshot, error) {
	if f.snapshots == nil {
		f.unexpected("Snapshots", name)
		return nil, errUnexpected
	}
	return f.snapshots(ctx, name)
}

func (f fake) CreateSnapshot(ctx context.Context, name, snapshot string) (bool, error) {
	if f.snap == nil {
		f.unexpected("Snap", name, snapshot)
		return false, errUnexpected
	}
	return f.snap(ctx, name, snapshot)
}

func (f fake) RemoveSnapshot(ctx context.Context, name, snapshot string) error {
	if f.unsnap == nil {
		f.unexpected("Unsnap", name, snapshot)
		return errUnexpected
	}
	return f.unsnap(ctx, name, snapshot)
}

func (f fake) Rollback(ctx context.Context, name, snapshot string) error {
	if f.rollback == nil {
		f.unexpected("Rollback", name, snapshot)
		return errUnexpected
	}
	return f.rollback(ctx, name, snapshot)
}

// docker is a client of a server on a socket, as dockerd is.
type docker struct {
	t    *testing.T
	http *http.Client
	logs *test.Hook
	end  func() error // ends the server and returns what Serve returned
}

func serve(t *testing.T, d fake) *docker {
	t.Helper()
	d.t = t
	return serveDriver(t, d)
}

func serveDriver(t *testing.T, d plugin.Driver) *docker {
	t.Helper()
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	socket := filepath.Join(t.TempDir(), "rbd.sock")
	l, err := plugin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&plugin.Server{Driver: d, Log: log}).Serve(ctx, l) }()
	c := &docker{t: t, http: clientOf(socket), logs: hook}
	ended := false
	c.end = func() error {
		stop()
		ended = true
		return <-done
	}
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		if !ended {
			if err := c.end(); err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
	})
	return c
}

func clientOf(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// answer is what came back: a status and a body, or an error of the connection.
type answer struct {
	status int
	body   string
	err    error
}

// ask sends a request as moby's plugin client does.
func (c *docker) ask(ctx context.Context, path, body string) answer {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+path, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	request.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	response, err := c.http.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.Header.Get("Content-Type") != "application/vnd.docker.plugins.v1.1+json" {
		c.t.Errorf("%s: content type %q", path, response.Header.Get("Content-Type"))
	}
	return answer{response.StatusCode, strings.TrimSuffix(string(text), "\n"), err}
}

func (c *docker) want(path, body string, status int, text string) {
	c.t.Helper()
	got := c.ask(c.t.Context(), path, body)
	if got.err != nil || got.status != status || got.body != text {
		c.t.Errorf("%s %s\n got %d %s %v\nwant %d %s", path, body, got.status, got.body, got.err, status, text)
	}
}

// wantHangUp: to dockerd that is an error of the transport, which says nothing
// about the volume.
func (c *docker) wantHangUp(path, body string) {
	c.t.Helper()
	got := c.ask(c.t.Context(), path, body)
	var transport net.Error
	if !errors.Is(got.err, io.EOF) || !errors.As(got.err, &transport) {
		c.t.Errorf("%s %s: got %d %s %v; want a connection closed without an answer", path, body, got.status, got.body, got.err)
	}
}

// lines returns the log once it has that many lines: the last one may come
// after its answer has been read.
func (c *docker) lines(n int) []*logrus.Entry {
	c.t.Helper()
	for {
		if all := c.logs.AllEntries(); len(all) >= n {
			return all
		}
		select {
		case <-c.t.Context().Done():
			c.t.Fatalf("the log has %d lines, want %d", len(c.logs.AllEntries()), n)
		case <-time.After(time.Millisecond):
		}
	}
}

var created = time.Date(2026, 11, 23, 8, 30, 0, 0, time.UTC)

func TestActivation(t *testing.T) {
	c := serve(t, fake{})
	for _, body := range []string{"", "{}"} {
		c.want("Plugin.Activate", body, 200, `{"Implements":["VolumeDriver"]}`)
		c.want("VolumeDriver.Capabilities", body, 200, `{"Capabilities":{"Scope":"global"}}`)
	}
}

// dockerd asks for them on every look-up of the driver, and an error would mean "local".
func TestCapabilitiesAnswerWhileAMountHangs(t *testing.T) {
	mounting, release := make(chan struct{}), make(chan struct{})
	c := serve(t, fake{mount: func(context.Context, string, string) (string, error) {
		close(mounting)
		<-release
		return "/volumes/db1", nil
	}})
	done := make(chan answer, 1)
	go func() { done <- c.ask(t.Context(), "VolumeDriver.Mount", `{"Name":"db1","ID":"a"}`) }()
	<-mounting
	c.want("VolumeDriver.Capabilities", "{}", 200, `{"Capabilities":{"Scope":"global"}}`)
	close(release)
	if got := <-done; got.body != `{"Mountpoint":"/volumes/db1"}` {
		t.Errorf("the mount in the end: %+v", got)
	}
}

func TestRequestsReachTheDriverAndItsAnswersDocker(t *testing.T) {
	want := func(t *testing.T, what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s %q, want %q", what, got, want)
		}
	}
	for _, row := range []struct {
		name, path, body string
		driver           func(t *testing.T) fake
		answer           string
	}{
		{"create", "VolumeDriver.Create", `{"Name":"db1","Opts":{"size":"10G","fstype":"xfs"}}`, func(t *testing.T) fake {
			return fake{create: func(_ context.Context, name string, opts map[string]string) error {
				want(t, "name", name, "db1")
				if !maps.Equal(opts, map[string]string{"size": "10G", "fstype": "xfs"}) {
					t.Errorf("options %v", opts)
				}
				return nil
			}}
		}, `{}`},
		{"create without options", "VolumeDriver.Create", `{"Name":"db1","Opts":null}`, func(t *testing.T) fake {
			return fake{create: func(_ context.Context, _ string, opts map[string]string) error {
				if len(opts) != 0 {
					t.Errorf("options %v", opts)
				}
				return nil
			}}
		}, `{}`},
		{"mount", "VolumeDriver.Mount", `{"Name":"db1","ID":"b87d7442095999a92b65b3d9691e697b61713829cc0ffd1bb72e4ccd51aa4d6c"}`, func(t *testing.T) fake {
			return fake{mount: func(_ context.Context, name, id string) (string, error) {
				want(t, "name", name, "db1")
				want(t, "id", id, "b87d7442095999a92b65b3d9691e697b61713829cc0ffd1bb72e4ccd51aa4d6c")
				return "/var/lib/docker-volume-rbd/volumes/db1", nil
			}}
		}, `{"Mountpoint":"/var/lib/docker-volume-rbd/volumes/db1"}`},
		{"unmount", "VolumeDriver.Unmount", `{"Name":"db1","ID":"a"}`, func(t *testing.T) fake {
			return fake{unmount: func(_ context.Context, name, id string) error {
				want(t, "name", name, "db1")
				want(t, "id", id, "a")
				return nil
			}}
		}, `{}`},
		{"remove", "VolumeDriver.Remove", `{"Name":"db1"}`, func(t *testing.T) fake {
			return fake{remove: func(_ context.Context, name string) error {
				want(t, "name", name, "db1")
				return nil
			}}
		}, `{}`},
		{"path", "VolumeDriver.Path", `{"Name":"db1"}`, func(t *testing.T) fake {
			return fake{path: func(_ context.Context, name string) string {
				want(t, "name", name, "db1")
				return "/volumes/db1"
			}}
		}, `{"Mountpoint":"/volumes/db1"}`},
		{"path of a volume that is not mounted", "VolumeDriver.Path", `{"Name":"db1"}`, func(*testing.T) fake {
			return fake{path: func(context.Context, string) string { return "" }}
		}, `{"Mountpoint":""}`},
		{"get", "VolumeDriver.Get", `{"Name":"db1"}`, func(t *testing.T) fake {
			return fake{get: func(_ context.Context, name string) (driver.Volume, error) {
				want(t, "name", name, "db1")
				return driver.Volume{Name: "db1", Mountpoint: "/volumes/db1", Created: created, Status: map[string]any{"size": "10GiB"}}, nil
			}}
		}, `{"Volume":{"Name":"db1","Mountpoint":"/volumes/db1","CreatedAt":"2026-11-23T08:30:00Z","Status":{"size":"10GiB"}}}`},
		{"get of what is known least about", "VolumeDriver.Get", `{"Name":"db1"}`, func(*testing.T) fake {
			return fake{get: func(context.Context, string) (driver.Volume, error) { return driver.Volume{Name: "db1"}, nil }}
		}, `{"Volume":{"Name":"db1"}}`},
		{"list", "VolumeDriver.List", `{}`, func(*testing.T) fake {
			return fake{list: func(context.Context) ([]driver.Volume, error) {
				return []driver.Volume{{Name: "db1", Created: created}, {Name: "db2", Mountpoint: "/volumes/db2"}}, nil
			}}
		}, `{"Volumes":[{"Name":"db1","CreatedAt":"2026-11-23T08:30:00Z"},{"Name":"db2","Mountpoint":"/volumes/db2"}]}`},
		{"list of nothing is a list", "VolumeDriver.List", `{}`, func(*testing.T) fake {
			return fake{list: func(context.Context) ([]driver.Volume, error) { return nil, nil }}
		}, `{"Volumes":[]}`},
		{"list needs no body, so its retry has an answer", "VolumeDriver.List", ``, func(*testing.T) fake {
			return fake{list: func(context.Context) ([]driver.Volume, error) { return nil, nil }}
		}, `{"Volumes":[]}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			serve(t, row.driver(t)).want(row.path, row.body, 200, row.answer)
		})
	}
}

func TestErrorsAreToldAsDockerExpectsThem(t *testing.T) {
	fault := fmt.Errorf("mount volume db1: %w by node n2 (10.0.0.2:0/1) since 08:30", backend.ErrInUse)
	c := serve(t, fake{
		create:  func(context.Context, string, map[string]string) error { return fault },
		mount:   func(context.Context, string, string) (string, error) { return "/volumes/db1", fault },
		unmount: func(context.Context, string, string) error { return fault },
		remove:  func(context.Context, string) error { return fault },
	})
	for _, op := range []string{"Create", "Mount", "Unmount", "Remove"} {
		c.want("VolumeDriver."+op, `{"Name":"db1","ID":"a"}`, 500, `{"Err":"mount volume db1: in use by node n2 (10.0.0.2:0/1) since 08:30"}`)
	}
}

// Docker's retry of a lost request has an empty body; what it meant is lost.
func TestAnEmptyBodyIsHungUpOn(t *testing.T) {
	c := serve(t, fake{})
	for _, op := range []string{"Create", "Mount", "Unmount", "Remove", "Get", "Path"} {
		c.wantHangUp("VolumeDriver."+op, "")
	}
}

func TestWhatIsNotTheProtocolIsRefusedInOneLine(t *testing.T) {
	c := serve(t, fake{})
	for _, op := range []string{"Create", "Mount", "Unmount", "Remove", "Get", "Path"} {
		for _, body := range []string{`{`, `Name=db1`, `[]`, `"db1"`, `{"Name":5}`, "{\"Name\":\"db1\"}\n{}", "\xff\n", `{"Name":{"a":"b"}}`} {
			got := c.ask(t.Context(), "VolumeDriver."+op, body)
			var said struct{ Err string }
			err := json.Unmarshal([]byte(got.body), &said)
			if got.status != 500 || err != nil || strings.ContainsAny(said.Err, "\n\r") ||
				!strings.HasPrefix(said.Err, "invalid request: not the JSON of docker's volume plugin protocol: ") {
				t.Errorf("%s %q: %d %s", op, body, got.status, got.body)
			}
		}
	}
	c.want("VolumeDriver.Mount", `{"Name":"db1"`, 500,
		`{"Err":"invalid request: not the JSON of docker's volume plugin protocol: unexpected end of JSON input"}`)
}

func TestAHugeBodyIsRefused(t *testing.T) {
	c := serve(t, fake{})
	got := c.ask(t.Context(), "VolumeDriver.Create", `{"Name":"`+strings.Repeat("a", 2<<20)+`"}`)
	if got.err == nil && got.status != 500 {
		t.Errorf("got %d %.100s", got.status, got.body)
	}
}

func TestUnknownPathsAreNotFound(t *testing.T) {
	log, _ := test.NewNullLogger()
	handler := (&plugin.Server{Driver: fake{t: t}, Log: log}).Handler()
	for _, path := range []string{"/", "/VolumeDriver.Snapshot", "/VolumeDriver.Create/", "/volumedriver.create"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{"Name":"db1"}`)))
		if w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestWhenDockerHangsUpTheDriverIsTold(t *testing.T) {
	for _, op := range []string{"Create", "Unmount", "Remove", "Get"} {
		t.Run(op, func(t *testing.T) {
			begun, told := make(chan struct{}), make(chan error, 1)
			wait := func(ctx context.Context) error {
				close(begun)
				<-ctx.Done()
				told <- ctx.Err()
				return ctx.Err()
			}
			c := serve(t, fake{
				create:  func(ctx context.Context, _ string, _ map[string]string) error { return wait(ctx) },
				unmount: func(ctx context.Context, _, _ string) error { return wait(ctx) },
				remove:  func(ctx context.Context, _ string) error { return wait(ctx) },
				get:     func(ctx context.Context, _ string) (driver.Volume, error) { return driver.Volume{}, wait(ctx) },
			})
			ctx, hangUp := context.WithCancel(t.Context())
			go func() {
				<-begun
				hangUp()
			}()
			if got := c.ask(ctx, "VolumeDriver."+op, `{"Name":"db1","ID":"a"}`); got.err == nil {
				t.Errorf("got an answer: %+v", got)
			}
			if err := <-told; !errors.Is(err, context.Canceled) {
				t.Errorf("the driver's context: %v", err)
			}
			if line := c.lines(1)[0]; line.Message != "failed" {
				t.Errorf("logged as %q", line.Message)
			}
		})
	}
}

// Of all requests only a mount is kept for who asks again.
func TestARemovalThatNobodyHearsOf(t *testing.T) {
	begun := make(chan struct{})
	c := serve(t, fake{remove: func(ctx context.Context, _ string) error { close(begun); <-ctx.Done(); return nil }})
	ctx, hangUp := context.WithCancel(t.Context())
	go func() {
		<-begun
		hangUp()
	}()
	_ = c.ask(ctx, "VolumeDriver.Remove", `{"Name":"db1"}`)
	if err, _ := c.lines(1)[0].Data[logrus.ErrorKey].(error); err == nil || err.Error() != "who asked has hung up" {
		t.Errorf("logged as %v", err)
	}
}

// Podman hangs up after 5 s, and asks again with the same id.
func TestAMountGoesOnWhenWhoAskedHasHungUp(t *testing.T) {
	for name, fault := range map[string]error{"and is kept": nil, "and fails": errors.New("mount volume db1: busy")} {
		t.Run(name, func(t *testing.T) {
			begun, goesOn, kept := make(chan struct{}), make(chan struct{}), make(chan string, 2)
			c := serve(t, fake{
				mount: func(ctx context.Context, _, _ string) (string, error) {
					close(begun)
					<-goesOn
					if _, limited := ctx.Deadline(); !limited || ctx.Err() != nil {
						t.Errorf("mounting with a context that has ended or never ends: %v", ctx.Err())
					}
					return "/volumes/db1", fault
				},
				keep: func(_ context.Context, name, id string) { kept <- name + " " + id },
			})
			ctx, hangUp := context.WithCancel(t.Context())
			go func() {
				<-begun
				hangUp()
			}()
			_ = c.ask(ctx, "VolumeDriver.Mount", `{"Name":"db1","ID":"a"}`)
			time.Sleep(50 * time.Millisecond) // the server learns that the connection is closed
			close(goesOn)
			line := c.lines(1)[0]
			err, _ := line.Data[logrus.ErrorKey].(error)
			if line.Message != "failed" || err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("logged as %q, %q", line.Message, err)
			}
			if fault != nil {
				if !errors.Is(err, fault) || len(kept) != 0 {
					t.Errorf("kept %d times; %v", len(kept), err)
				}
				return
			}
			if got := <-kept; got != "db1 a" || len(kept) != 0 || !strings.Contains(err.Error(), "kept for a minute") {
				t.Errorf("kept %q, and %d more; %v", got, len(kept), err)
			}
		})
	}
}

func TestEveryRequestHasADeadlineJustInsideDockers(t *testing.T) {
	deadlines := make(chan time.Duration, 1)
	note := func(ctx context.Context) {
		end, _ := ctx.Deadline()
		deadlines <- time.Until(end)
	}
	c := serve(t, fake{
		create:  func(ctx context.Context, _ string, _ map[string]string) error { note(ctx); return nil },
		get:     func(ctx context.Context, _ string) (driver.Volume, error) { note(ctx); return driver.Volume{}, nil },
		list:    func(ctx context.Context) ([]driver.Volume, error) { note(ctx); return nil, nil },
		path:    func(ctx context.Context, _ string) string { note(ctx); return "" },
		mount:   func(ctx context.Context, _, _ string) (string, error) { note(ctx); return "", nil },
		unmount: func(ctx context.Context, _, _ string) error { note(ctx); return nil },
		remove:  func(ctx context.Context, _ string) error { note(ctx); return nil },
	})
	for op, docker := range map[string]time.Duration{
		"Create": 2 * time.Minute, "Mount": 2 * time.Minute,
		"Unmount": time.Minute, "Remove": time.Minute, "Get": time.Minute, "List": time.Minute, "Path": time.Minute,
	} {
		if got := c.ask(t.Context(), "VolumeDriver."+op, `{"Name":"db1","ID":"a"}`); got.status != 200 {
			t.Errorf("%s: %+v", op, got)
		}
		if left := <-deadlines; left <= docker-30*time.Second || left > docker-15*time.Second { // 15 s to undo
			t.Errorf("%s: %v, and Docker waits for %v", op, left, docker)
		}
	}
}

func TestRequestsDoNotWaitForEachOther(t *testing.T) {
	const n = 8
	arrived, release := make(chan string, n), make(chan struct{})
	c := serve(t, fake{mount: func(_ context.Context, name, _ string) (string, error) {
		arrived <- name
		<-release
		return "/volumes/" + name, nil
	}})
	done := make(chan answer, n)
	for i := range n {
		go func() { done <- c.ask(t.Context(), "VolumeDriver.Mount", fmt.Sprintf(`{"Name":"db%d","ID":"a"}`, i)) }()
	}
	names := map[string]bool{}
	for range n {
		names[<-arrived] = true
	}
	close(release)
	for range n {
		if got := <-done; got.status != 200 {
			t.Errorf("%+v", got)
		}
	}
	if len(names) != n {
		t.Errorf("under way at the same time: %v", names)
	}
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "rbd.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as after SIGKILL
	_ = dead.Close()
	if _, err := os.Stat(socket); err != nil {
		t.Fatalf("no stale socket to begin with: %v", err)
	}
	l, err := plugin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if info, err := os.Stat(socket); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatalf("nobody answers: %v", err)
	}
	_ = conn.Close()
}

// A plugin was killed when it had just forked: that process has the socket, too, until
// it becomes an image server.
func TestASocketThatIsAboutToDieIsWaitedFor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "rbd.sock")
	dying, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dying.SetUnlinkOnClose(false)
	asked := make(chan error, 1)
	go func() { // it ends as soon as somebody has found it alive
		conn, err := dying.Accept()
		if err == nil {
			err = errors.Join(conn.Close(), dying.Close())
		}
		asked <- err
	}()
	l, err := plugin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

func TestALiveSocketIsNotTakenAway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "rbd.sock")
	l, err := plugin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	second, err := plugin.Listen(socket)
	if err == nil {
		_ = second.Close()
		t.Fatal("two plugins on one socket")
	}
	if want := "listen on " + socket + ": another plugin answers there"; err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatalf("the first one is gone: %v", err)
	}
	_ = conn.Close()
}

func TestListenSaysWhyItCannot(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "missing", "rbd.sock")
	if l, err := plugin.Listen(socket); err == nil {
		_ = l.Close()
		t.Error("listening in a directory that is not there")
	} else if !strings.Contains(err.Error(), socket) {
		t.Errorf("the error does not name the socket: %v", err)
	}
}

func TestServeEndsWithItsContextAfterTheRequestsUnderWay(t *testing.T) {
	mounting, release := make(chan struct{}), make(chan struct{})
	c := serve(t, fake{mount: func(ctx context.Context, _, _ string) (string, error) {
		close(mounting)
		<-release
		return "/volumes/db1", ctx.Err()
	}})
	done, ended := make(chan answer, 1), make(chan error, 1)
	go func() { done <- c.ask(t.Context(), "VolumeDriver.Mount", `{"Name":"db1","ID":"a"}`) }()
	<-mounting
	go func() { ended <- c.end() }()
	// Once the socket is closed, nobody new comes in.
	for {
		probe := c.ask(t.Context(), "VolumeDriver.Capabilities", "{}")
		if probe.err != nil {
			break
		}
		c.http.CloseIdleConnections()
	}
	select {
	case err := <-ended:
		t.Errorf("it did not wait for the request: %v", err)
	default:
	}
	close(release)
	if got := <-done; got.status != 200 || got.body != `{"Mountpoint":"/volumes/db1"}` {
		t.Errorf("the request under way: %+v", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeReportsAListenerThatBreaks(t *testing.T) {
	l, err := plugin.Listen(filepath.Join(t.TempDir(), "rbd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	log, _ := test.NewNullLogger()
	if err := (&plugin.Server{Driver: fake{t: t}, Log: log}).Serve(t.Context(), l); err == nil {
		t.Error("no error")
	}
}

func TestOneLogLinePerRequest(t *testing.T) {
	missing := fmt.Errorf("get volume db1: %w", backend.ErrNotFound)
	broken := fmt.Errorf("volume db1: %w", backend.ErrUnavailable)
	get := func(err error) fake {
		return fake{get: func(context.Context, string) (driver.Volume, error) { return driver.Volume{}, err }}
	}
	list := func(err error) fake {
		return fake{list: func(context.Context) ([]driver.Volume, error) { return nil, err }}
	}
	mount := func(err error) fake {
		return fake{mount: func(context.Context, string, string) (string, error) { return "", err }}
	}
	const body = `{"Name":"db1","ID":"a"}`
	for _, row := range []struct {
		name, path, body string
		driver           fake
		level            logrus.Level
		message          string
		fields           map[string]any // beside the duration
	}{
		{"mount", "Mount", body, mount(nil), logrus.InfoLevel, "ok", logrus.Fields{"op": "mount", "volume": "db1", "id": "a"}},
		{"mount that fails", "Mount", body, mount(broken), logrus.ErrorLevel, "failed",
			logrus.Fields{"op": "mount", "volume": "db1", "id": "a", "error": broken}},
		{"get is asked all the time", "Get", `{"Name":"db1"}`, get(nil), logrus.DebugLevel, "ok", logrus.Fields{"op": "get", "volume": "db1"}},
		{"not found is an answer", "Get", `{"Name":"db1"}`, get(missing), logrus.DebugLevel, "get volume db1: not found",
			logrus.Fields{"op": "get", "volume": "db1"}},
		{"hung up on get", "Get", `{"Name":"db1"}`, get(broken), logrus.ErrorLevel, "failed", logrus.Fields{"op": "get", "volume": "db1"}},
		{"list", "List", `{}`, list(nil), logrus.DebugLevel, "ok", logrus.Fields{"op": "list"}},
		{"list that fails", "List", `{}`, list(broken), logrus.ErrorLevel, "failed", logrus.Fields{"op": "list"}},
		{"empty body", "Remove", ``, fake{}, logrus.ErrorLevel, "failed", logrus.Fields{"op": "remove"}},
		{"malformed body", "Remove", `{"Name"`, fake{}, logrus.ErrorLevel, "failed", logrus.Fields{"op": "remove"}},
		{"a long name is cut", "Mount", `{"Name":"` + strings.Repeat("n", 5000) + `","ID":"` + strings.Repeat("i", 101) + `"}`, mount(nil),
			logrus.InfoLevel, "ok", logrus.Fields{"op": "mount", "volume": strings.Repeat("n", 100) + "...", "id": strings.Repeat("i", 100) + "..."}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := serve(t, row.driver)
			_ = c.ask(t.Context(), "VolumeDriver."+row.path, row.body)
			lines := c.lines(1)
			if len(lines) != 1 {
				t.Fatalf("%d lines", len(lines))
			}
			line := lines[0]
			if line.Level != row.level || line.Message != row.message {
				t.Errorf("%s %q, want %s %q", line.Level, line.Message, row.level, row.message)
			}
			if d, err := time.ParseDuration(fmt.Sprint(line.Data["duration"])); err != nil || d < 0 {
				t.Errorf("duration %v", line.Data["duration"])
			}
			for field, want := range row.fields {
				if got := line.Data[field]; fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s is %v, want %v", field, got, want)
				}
			}
			if _, named := row.fields["id"]; !named && line.Data["id"] != nil {
				t.Errorf("id %v", line.Data["id"])
			}
			if _, failed := line.Data["error"]; failed != (row.level == logrus.ErrorLevel) {
				t.Errorf("error field %v", line.Data["error"])
			}
		})
	}
}

func TestWhatIsInARequestDoesNotReachTheLog(t *testing.T) {
	c := serve(t, fake{
		create: func(context.Context, string, map[string]string) error { return nil },
		mount:  func(context.Context, string, string) (string, error) { return "/volumes/db1", nil },
	})
	bodies := []string{
		`{"Name":"db1","Opts":{"mkfsOptions":"hunter2","hunter2":"x"}}`,
		`{"Name":"db1","Opts":{"mkfsOptions":"hunter2"}`,
		`{"Name":"db1","Opts":"hunter2"}`,
		`{"Name":"db1","Opts":{"size":["hunter2"]}}`,
		`{"Name":"db1","Password":"hunter2"}`,
		`hunter2`,
	}
	for _, body := range bodies {
		_ = c.ask(t.Context(), "VolumeDriver.Create", body)
	}
	_ = c.ask(t.Context(), "VolumeDriver.Mount", `{"Name":"db1","ID":"a","Token":"hunter2"}`)
	for _, line := range c.lines(len(bodies) + 1) {
		line.Logger = logrus.New()
		text, err := line.String()
		if err != nil || strings.Contains(text, "hunter2") {
			t.Errorf("logged: %s (%v)", text, err)
		}
	}
}

var operations = []string{"Create", "Mount", "Unmount", "Remove", "Get", "List", "Path", "Capabilities"}

// FuzzRequests: whatever comes, the answer is JSON that Docker understands, or
// none. The name decides how the fake driver answers.
func FuzzRequests(f *testing.F) {
	for i := range operations {
		for _, body := range []string{
			"", "{}", "null", `{"Name":"db1","ID":"a"}`, `{"Name":"missing"}`, `{"Name":"broken"}`, `{"Name":"db1","Opts":{"size":"10G"}}`, `{"Name":5}`,
			`{"Name":"a\nb","ID":"\u0000"}`, "{\"Name\":\"\xff\"}", `[`, `{"Name":"db1"}{`, `{"name":"db1","NAME":"db2"}`, `{"Opts":{"a":{"b":1}}}`, "\n",
		} {
			f.Add(uint8(i), []byte(body))
		}
	}
	fault := func(name string) error {
		switch name {
		case "missing":
			return backend.ErrNotFound
		case "broken":
			return backend.ErrUnavailable
		}
		return nil
	}
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	handler := (&plugin.Server{Log: log, Driver: fake{
		t:      f,
		create: func(_ context.Context, name string, _ map[string]string) error { return fault(name) },
		get: func(_ context.Context, name string) (driver.Volume, error) {
			return driver.Volume{Name: name}, fault(name)
		},
		list:    func(context.Context) ([]driver.Volume, error) { return []driver.Volume{{Name: "db1"}}, nil },
		path:    func(_ context.Context, name string) string { return "/volumes/" + name },
		mount:   func(_ context.Context, name, _ string) (string, error) { return "/volumes/" + name, fault(name) },
		unmount: func(_ context.Context, name, _ string) error { return fault(name) },
		remove:  func(_ context.Context, name string) error { return fault(name) },
	}}).Handler()
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		op := operations[int(which)%len(operations)]
		hook.Reset()
		w := httptest.NewRecorder()
		if hungUp(t, handler, w, httptest.NewRequest(http.MethodPost, "/VolumeDriver."+op, bytes.NewReader(body))) {
			if op == "List" || op == "Capabilities" {
				t.Errorf("%s: hung up", op)
			}
			if op != "Get" && len(body) > 0 {
				t.Errorf("%s %q: hung up though there is a body", op, body)
			}
			if w.Body.Len() > 0 {
				t.Errorf("%s: hung up after an answer: %s", op, w.Body)
			}
			return
		}
		if len(body) == 0 && op != "List" && op != "Capabilities" {
			t.Errorf("%s: an answer to an empty body: %s", op, w.Body)
		}
		var said map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil {
			t.Fatalf("%s %q: answered %q: %v", op, body, w.Body, err)
		}
		text, isError := said["Err"].(string)
		switch {
		case w.Code == http.StatusOK && !isError:
		case w.Code == http.StatusInternalServerError && isError && text != "" && !strings.ContainsAny(text, "\n\r"):
		default:
			t.Errorf("%s %q: answered %d %s", op, body, w.Code, w.Body)
		}
		if lines := len(hook.AllEntries()); lines != 1 && op != "Capabilities" {
			t.Errorf("%s %q: %d lines of log", op, body, lines)
		}
	})
}

// hungUp serves one request; any panic but the one that net/http takes for
// hanging up goes on.
func hungUp(t *testing.T, handler http.Handler, w http.ResponseWriter, r *http.Request) (aborted bool) {
	t.Helper()
	defer func() {
		switch what := recover(); what {
		case nil:
		case http.ErrAbortHandler:
			aborted = true
		default:
			panic(what)
		}
	}()
	handler.ServeHTTP(w, r)
	return false
}
