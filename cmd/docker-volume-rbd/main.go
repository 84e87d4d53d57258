// Docker-volume-rbd is a Docker volume plugin for images of Ceph RBD. This
// package wires the others together and is the only reader of the environment;
// its settings are the table in settings.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/plugin"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
)

var version = "unknown" // set by the linker

// serveImage is the argument that makes this program a child of the userspace
// mapper.
const serveImage = "serve-image"

// leastLife keeps a plugin that ends to be started afresh from doing so all the
// time, where that does not help.
const leastLife = 10 * time.Second

// watchInterval is how often mappings are compared with their guards.
const watchInterval = 15 * time.Second

// growInterval is how often devices are looked at that may have grown. It asks the
// kernel only.
const growInterval = time.Second

func main() {
	// librados writes to sockets from threads that are not Go's: there SIGPIPE
	// would end the process.
	signal.Ignore(syscall.SIGPIPE)
	if len(os.Args) == 2 && os.Args[1] == serveImage {
		if err := fuse.Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	socket := flag.String("socket", "/run/docker/plugins/rbd.sock", "unix socket to answer Docker on")
	root := flag.String("root", "/var/lib/docker-volume-rbd", "directory of mounts and of the record; it must propagate to the host")
	run := flag.String("run", "/run/docker-volume-rbd", "directory of the userspace mapper")
	conf := flag.String("conf", "", "Ceph's configuration file (default /etc/ceph/CLUSTER.conf)")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println(version)
		return
	}
	log := logrus.New()
	log.SetOutput(os.Stdout) // dockerd logs a plugin's standard error as errors, whatever they are
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true, TimestampFormat: "2006-01-02T15:04:05.000Z07:00"})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// Passed on to no child: the image servers must not keep the socket.
	listen, err := listens(*socket, activation.Files(true))
	if err != nil {
		log.Fatal(err)
	}
	s := service{log: log, listen: listen, root: *root, run: *run, conf: *conf, module: krbd.Available, patience: modulePatience, stop: stop}
	again, err := s.serve(ctx)
	for again && err == nil && ctx.Err() == nil {
		again, err = s.serve(ctx)
	}
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// service is the plugin as it was started.
type service struct {
	log             *logrus.Logger
	listen          func() (net.Listener, error)
	root, run, conf string
	module          func(context.Context) error // tells whether the kernel's is there; krbd.Available
	patience        time.Duration               // with it
	stop            func()                      // ends the program
}

// serve listens before anything that may take time or fail: dockerd disables a
// plugin whose socket is not there 9.5 s after its start. It is to be called again if
// it ends because what kept the plugin from working is over.
func (s service) serve(ctx context.Context) (again bool, err error) {
	listener, err := s.listen()
	if err != nil {
		return false, err
	}
	began := time.Now()
	places, err := s.newPlaces(ctx, func() {
		if time.Since(began) < leastLife {
			s.log.Warn("not now: the plugin has only just been started")
			return
		}
		s.stop()
	})
	if err != nil {
		err = fmt.Errorf("the plugin cannot work: %w", err)
		s.log.Error(err)
		again = errors.Is(err, krbd.ErrLate)
		if again {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			go func() {
				defer cancel()
				for errors.Is(s.module(ctx), krbd.ErrLate) && ctx.Err() == nil {
					time.Sleep(time.Second) // it was killed: once more
				}
			}()
		}
		server := plugin.Server{Driver: plugin.Broken{Reason: err}, Log: s.log}
		return again, server.Serve(ctx, listener)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		places.Watch(ctx, watchInterval, growInterval)
	}()
	server := plugin.Server{Driver: places, Log: s.log}
	err = server.Serve(ctx, listener)
	ending, cancel := context.WithTimeout(context.Background(), 3500*time.Millisecond)
	defer cancel()
	select { // what it has begun, it ends or takes back
	case <-watched:
	case <-ending.Done():
	}
	places.Shutdown(ending)
	return false, err
}

// newPlaces makes a driver for each pool and namespace, all on one connection.
func (s service) newPlaces(ctx context.Context, restart func()) (places driver.Pools, err error) {
	log := s.log
	values := read(os.Getenv)
	level, err := parseLevel(values["LOG_LEVEL"])
	if err != nil {
		return nil, err
	}
	log.SetLevel(level)
	trash, err := parseTrash(values["VOLUME_TRASH"])
	if err != nil {
		return nil, err
	}
	where, err := parsePlaces(values)
	if err != nil {
		return nil, err
	}
	node, err := thisNode(values["NODE_NAME"])
	if err != nil {
		return nil, err
	}
	missing, err := s.kernel(ctx, values["RBD_MAPPER"]) // before anything is begun: it may have to be tried again
	if err != nil {
		return nil, err
	}
	hosts := hostMounts(log)
	first := rbd.New(rbd.Config{
		Cluster: values["RBD_CONF_CLUSTER"], ConfFile: s.conf, User: values["RBD_CONF_KEYRING_USER"],
		Pool: where[0].Pool, Namespace: where[0].Namespace, Log: log,
	})
	if missing == nil && values["RBD_MAPPER"] != "fuse" {
		missing = refusesKey(first.Config())
	}
	for i, place := range where {
		pool, root, run := first, s.root, s.run
		if i > 0 {
			own := strings.ReplaceAll(place.String(), "/", ",") // no name of a pool has a comma
			pool, root, run = first.Beside(place), filepath.Join(root, "pools", own), filepath.Join(run+"-pools", own)
		}
		mounts, err := makeDir(filepath.Join(root, "volumes"))
		if err != nil {
			return nil, err
		}
		if err := alone(node.Name, pool.Config()); err != nil {
			return nil, err
		}
		mapper, why, err := chooseMapper(log, values, missing, pool, run)
		if err != nil {
			return nil, err
		}
		log.Infof("docker-volume-rbd %s on node %s: pool %s, user %s, mapper %s", version, node.Name, place, values["RBD_CONF_KEYRING_USER"], why)
		_, kernel := mapper.(*krbd.Mapper) // clients in userspace wait for the newest OSD map by themselves
		c, err := sabotaged(driver.Config{
			Images: pool, Records: pool, Fences: pool, Secrets: pool, Mapper: mapper,
			Filesystem: fsys.FS{HostMounts: hosts},
			Why:        why,
			Node:       node, Pool: place, Trash: trash,
			Defaults: defaults(values), Root: filepath.Dir(mounts), Log: log, BreakLock: !kernel,
			Restart: func() {
				if !places.InUse(context.Background()) { // in another place
					restart()
				}
			},
		}, pool, pool.Config())
		if err != nil {
			return nil, err
		}
		d, err := driver.New(c)
		if err != nil {
			return nil, err
		}
		places = append(places, d)
	}
	return places, nil
}

// makeDir makes a directory and returns its name as mountinfo will show it.
func makeDir(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// alone keeps a second plugin from the volumes of this node's first one, under
// another alias say: each would take the other's clients for dead remains of its
// own. The name is free again when this process ends, and it is the host's, with
// the host's network.
func alone(node string, ceph rbd.Config) error {
	cluster, err := ceph.FSID()
	if err != nil || cluster == "" { // it may come later, and everything that asks Ceph says so until then
		cluster = ceph.Cluster
	}
	name := fmt.Sprintf("@docker-volume-rbd/%s/%s/%s/%s", cluster, ceph.Pool, ceph.Namespace, node)
	addr := &net.UnixAddr{Net: "unixgram", Name: name}
	socket, err := net.ListenUnixgram("unixgram", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("another plugin on node %s has pool %s already; disable it first", node, ceph.Pool)
	}
	if err == nil {
		keep = append(keep, socket)
	}
	return err
}

// keep holds what lives as long as the process.
var keep []io.Closer

func thisNode(name string) (guard.Node, error) {
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return guard.Node{}, err
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return guard.Node{Name: name, Boot: strings.TrimSpace(string(boot)), Hosts: hostAddrs}, err
}

func hostAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			ips = append(ips, prefix.Addr().Unmap())
		}
	}
	return ips, nil
}

// hostMounts is the mount table of the process that has started us, which is in the
// mount namespace from which Docker starts containers; with pidhost it can be seen.
// It may end before us, so that its table is opened now.
func hostMounts(log *logrus.Logger) *fsys.Table {
	table, err := fsys.OpenTable(fmt.Sprintf("/proc/%d/mountinfo", os.Getppid()))
	if err != nil { // in a pid namespace of our own the number is 0
		log.Warnf("the host's processes are not visible: whether mounts reach the host is not checked (%v)", err)
		return nil
	}
	return table
}
