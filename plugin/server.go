package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/docker/go-plugins-helpers/volume"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// Driver does what the requests ask for; see the methods of driver.Driver.
type Driver interface {
	Create(ctx context.Context, name string, opts map[string]string) error
	Get(ctx context.Context, name string) (driver.Volume, error)
	List(ctx context.Context) ([]driver.Volume, error)
	Path(ctx context.Context, name string) string
	Mount(ctx context.Context, name, id string) (path string, err error)
	Unmount(ctx context.Context, name, id string) error
	Remove(ctx context.Context, name string) error
	Holdings(ctx context.Context) ([]driver.Holding, error)
	FenceNode(ctx context.Context, node string) ([]driver.Holding, error)
	Snapshots(ctx context.Context, name string) ([]driver.Snapshot, error)
	Snap(ctx context.Context, name, snapshot string) (frozen bool, err error)
	Unsnap(ctx context.Context, name, snapshot string) error
	Rollback(ctx context.Context, name, snapshot string) error
}

// Server answers Docker.
type Server struct {
	Driver Driver
	Log    logrus.FieldLogger
}

// Docker waits two minutes for Create and Mount and one for everything else
// (moby, daemon/volume/drivers/proxy.go). Ending a little earlier gets the
// reason to the user. It may wait for less: 30 s after docker plugin enable.
const (
	longDeadline  = 110 * time.Second
	shortDeadline = 50 * time.Second
)

// maxBody is far above any request of Docker's.
const maxBody = 1 << 20

// Handler routes the paths of the protocol.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", serve(s, "activate", shortDeadline, s.activate))
	mux.HandleFunc("/VolumeDriver.Capabilities", serve(s, "capabilities", shortDeadline, s.capabilities))
	mux.HandleFunc("/VolumeDriver.Create", serve(s, "create", longDeadline, s.create))
	mux.HandleFunc("/VolumeDriver.Mount", serve(s, "mount", longDeadline, s.mount))
	mux.HandleFunc("/VolumeDriver.Unmount", serve(s, "unmount", shortDeadline, s.unmount))
	mux.HandleFunc("/VolumeDriver.Remove", serve(s, "remove", shortDeadline, s.remove))
	mux.HandleFunc("/VolumeDriver.Get", serve(s, "get", shortDeadline, s.get))
	mux.HandleFunc("/VolumeDriver.List", serve(s, "list", shortDeadline, s.list))
	mux.HandleFunc("/VolumeDriver.Path", serve(s, "path", shortDeadline, s.path))
	mux.HandleFunc("/Guard.List", serve(s, "list guards", shortDeadline, s.guards))
	mux.HandleFunc("/Guard.Fence", serve(s, "fence node", shortDeadline, s.fence))
	mux.HandleFunc("/Snapshot.List", serve(s, "list snapshots", shortDeadline, s.snapshots))
	mux.HandleFunc("/Snapshot.Create", serve(s, "make snapshot", shortDeadline, s.snap))
	mux.HandleFunc("/Snapshot.Remove", serve(s, "remove snapshot", shortDeadline, s.unsnap))
	mux.HandleFunc("/Snapshot.Rollback", serve(s, "roll back", longDeadline, s.rollback))
	return mux
}

// empty is the answer of what answers nothing: Docker wants an object.
type empty struct{}

func (s *Server) activate(context.Context, empty) (map[string][]string, error) {
	return map[string][]string{"Implements": {"VolumeDriver"}}, nil
}

func (s *Server) capabilities(context.Context, empty) (volume.CapabilitiesResponse, error) {
	return volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "global"}}, nil
}

func (s *Server) create(ctx context.Context, r volume.CreateRequest) (empty, error) {
	return empty{}, s.Driver.Create(ctx, r.Name, r.Options)
}

func (s *Server) mount(ctx context.Context, r volume.MountRequest) (volume.MountResponse, error) {
	path, err := s.Driver.Mount(ctx, r.Name, r.ID)
	if err == nil && errors.Is(ctx.Err(), context.Canceled) {
		// Docker has hung up: nobody would ever unmount this.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortDeadline)
		defer cancel()
		err = errHungUp
		if undo := s.Driver.Unmount(ctx, r.Name, r.ID); undo != nil {
			err = fmt.Errorf("%w; and then: %w", err, undo)
		}
	}
	return volume.MountResponse{Mountpoint: path}, err
}

var errHungUp = errors.New("docker hung up")

func (s *Server) unmount(ctx context.Context, r volume.UnmountRequest) (empty, error) {
	return empty{}, s.Driver.Unmount(ctx, r.Name, r.ID)
}

func (s *Server) remove(ctx context.Context, r volume.RemoveRequest) (empty, error) {
	return empty{}, s.Driver.Remove(ctx, r.Name)
}

func (s *Server) get(ctx context.Context, r volume.GetRequest) (volume.GetResponse, error) {
	v, err := s.Driver.Get(ctx, r.Name)
	if err != nil && !errors.Is(err, driver.ErrNotFound) && !errors.Is(err, driver.ErrInvalid) && !errors.Is(err, driver.ErrTwice) {
		return volume.GetResponse{}, hangUp{err}
	}
	return volume.GetResponse{Volume: encode(v)}, err
}

func (s *Server) list(ctx context.Context, _ empty) (volume.ListResponse, error) {
	volumes, err := s.Driver.List(ctx)
	if err != nil {
		return volume.ListResponse{}, hangUp{err}
	}
	answer := volume.ListResponse{Volumes: []*volume.Volume{}}
	for _, v := range volumes {
		answer.Volumes = append(answer.Volumes, encode(v))
	}
	return answer, nil
}

func (s *Server) path(ctx context.Context, r volume.PathRequest) (volume.PathResponse, error) {
	return volume.PathResponse{Mountpoint: s.Driver.Path(ctx, r.Name)}, nil
}

func encode(v driver.Volume) *volume.Volume {
	out := &volume.Volume{Name: v.Name, Mountpoint: v.Mountpoint, Status: v.Status}
	if !v.Created.IsZero() {
		out.CreatedAt = v.Created.Format(time.RFC3339)
	}
	return out
}

// hangUp is an error that must not be told.
type hangUp struct{ error }

func (h hangUp) Unwrap() error { return h.error }

// serve decodes a request, runs fn with a deadline, answers, and logs.
func serve[Request, Response any](s *Server, op string, limit time.Duration, fn func(context.Context, Request) (Response, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		var (
			request  Request
			response Response
		)
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var log logrus.FieldLogger = s.Log.WithField("op", op)
		if err == nil {
			log, err = decode(log, body, &request)
		}
		if err == nil {
			response, err = fn(ctx, request)
		}
		logRequest(log.WithField("duration", time.Since(start).Round(100*time.Microsecond).String()), op, err)
		var hang hangUp
		switch {
		case err == nil:
			sdk.EncodeResponse(w, response, false)
		case errors.As(err, &hang):
			panic(http.ErrAbortHandler)
		default:
			sdk.EncodeResponse(w, volume.NewErrorResponse(err.Error()), true)
		}
	}
}

// decode reads the body. An empty one is Docker's retry after a lost
// connection: it has read its own buffer to the end the first time (moby,
// pkg/plugins/client.go). It says nothing of what was meant, so hang up.
func decode(log logrus.FieldLogger, body []byte, request any) (logrus.FieldLogger, error) {
	if _, none := request.(*empty); none {
		return log, nil
	}
	if len(body) == 0 {
		return log, hangUp{errors.New("empty body: docker's retry of a lost request")}
	}
	if err := json.Unmarshal(body, request); err != nil {
		return log, fmt.Errorf("%w request: not the JSON of docker's volume plugin protocol: %w", driver.ErrInvalid, err)
	}
	var who struct{ Name, Volume, Snapshot, ID string }
	if json.Unmarshal(body, &who) == nil {
		log = log.WithField("volume", shorten(who.Name+who.Volume))
		if who.Snapshot != "" {
			log = log.WithField("snapshot", shorten(who.Snapshot))
		}
		if who.ID != "" {
			log = log.WithField("id", shorten(who.ID))
		}
	}
	return log, nil
}

// shorten keeps a hostile name or a 64-digit id from filling the log.
func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// logRequest writes the one line of a request. What Docker asks all the time
// and what changes nothing is for debugging, as long as it works.
func logRequest(log logrus.FieldLogger, op string, err error) {
	looks := false
	switch op {
	case "activate", "capabilities", "get", "list", "path", "list guards", "list snapshots":
		looks = true
	}
	switch {
	case err == nil && looks:
		log.Debug("ok")
	case err == nil:
		log.Info("ok")
	case op == "get" && errors.Is(err, driver.ErrNotFound):
		log.Debug(err)
	default:
		log.WithError(err).Error("failed")
	}
}

// Listen makes the unix socket. A file that a killed plugin left is replaced;
// one that somebody answers on is not.
func Listen(path string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	switch conn, err := new(net.Dialer).DialContext(ctx, "unix", path); {
	case err == nil:
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: another plugin answers there", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// Serve answers until the context ends, and then gives the requests under way
// 3 of the 10 s that Docker gives a plugin to end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
