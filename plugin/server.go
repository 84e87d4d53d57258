package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// Driver does what the requests ask for; see the methods of driver.Driver.
type Driver interface {
	Create(ctx context.Context, name string, opts map[string]string) error
	Get(ctx context.Context, name string) (driver.Volume, error)
	List(ctx context.Context) ([]driver.Volume, error)
	Path(ctx context.Context, name string) string
	Mount(ctx context.Context, name, id string) (path string, err error)
	Keep(ctx context.Context, name, id string)
	Unmount(ctx context.Context, name, id string) error
	Remove(ctx context.Context, name string) error
	GuardStatus(ctx context.Context) ([]guard.Status, error)
	FenceNode(ctx context.Context, node, address string) ([]guard.Status, error)
	Snapshots(ctx context.Context, name string) ([]backend.Snapshot, error)
	CreateSnapshot(ctx context.Context, name, snapshot string) (frozen bool, err error)
	RemoveSnapshot(ctx context.Context, name, snapshot string) error
	Rollback(ctx context.Context, name, snapshot string) error
}

// Server answers Docker.
type Server struct {
	Driver Driver
	Log    logrus.FieldLogger
}

// Handler routes the paths of the protocol.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", serve(s, "activate", short, s.activate, nil))
	mux.HandleFunc("/VolumeDriver.Capabilities", serve(s, "capabilities", short, s.capabilities, nil))
	mux.HandleFunc("/VolumeDriver.Create", serve(s, "create", long, s.create, nil))
	mux.HandleFunc("/VolumeDriver.Mount", serve(s, "mount", long, s.mount, s.keep))
	mux.HandleFunc("/VolumeDriver.Unmount", serve(s, "unmount", short, s.unmount, nil))
	mux.HandleFunc("/VolumeDriver.Remove", serve(s, "remove", short, s.remove, nil))
	mux.HandleFunc("/VolumeDriver.Get", serve(s, "get", short, s.get, nil))
	mux.HandleFunc("/VolumeDriver.List", serve(s, "list", short, s.list, nil))
	mux.HandleFunc("/VolumeDriver.Path", serve(s, "path", short, s.path, nil))
	mux.HandleFunc("/Guard.List", serve(s, "list guards", short, s.guards, nil))
	mux.HandleFunc("/Guard.Fence", serve(s, "fence node", short, s.fence, nil))
	mux.HandleFunc("/Snapshot.List", serve(s, "list snapshots", short, s.snapshots, nil))
	mux.HandleFunc("/Snapshot.Create", serve(s, "make snapshot", short, s.snap, nil))
	mux.HandleFunc("/Snapshot.Remove", serve(s, "remove snapshot", short, s.unsnap, nil))
	mux.HandleFunc("/Snapshot.Rollback", serve(s, "roll back", long, s.rollback, nil))
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
	return volume.MountResponse{Mountpoint: path}, err
}

func (s *Server) keep(ctx context.Context, r volume.MountRequest) { s.Driver.Keep(ctx, r.Name, r.ID) }

func (s *Server) unmount(ctx context.Context, r volume.UnmountRequest) (empty, error) {
	return empty{}, s.Driver.Unmount(ctx, r.Name, r.ID)
}

func (s *Server) remove(ctx context.Context, r volume.RemoveRequest) (empty, error) {
	return empty{}, s.Driver.Remove(ctx, r.Name)
}

func (s *Server) get(ctx context.Context, r volume.GetRequest) (volume.GetResponse, error) {
	v, err := s.Driver.Get(ctx, r.Name)
	return volume.GetResponse{Volume: encode(v)}, err
}

func (s *Server) list(ctx context.Context, _ empty) (volume.ListResponse, error) {
	volumes, err := s.Driver.List(ctx)
	if err != nil {
		return volume.ListResponse{}, err
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

// Listen makes the unix socket. A file that a killed plugin left is replaced;
// one that somebody answers on is not.
func Listen(path string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
		if err != nil {
			break
		}
		_ = conn.Close()
		// A process that a plugin was just starting when it was killed has its socket until it
		// becomes another program: nobody answers there, and yet a connection is made.
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("listen on %s: another plugin answers there", path)
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
