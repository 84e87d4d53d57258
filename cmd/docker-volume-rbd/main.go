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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
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
	if err := serve(log, *socket, *root, *run, *conf); err != nil {
		log.Fatal(err)
	}
}

// serve listens before anything that may take time or fail: dockerd disables a
// plugin that has not answered 9.5 s after its start.
func serve(log *logrus.Logger, socket, root, run, conf string) error {
	listener, err := plugin.Listen(socket)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	began := time.Now()
	places, err := newPlaces(log, root, run, conf, func() {
		if time.Since(began) < leastLife {
			log.Warn("not now: the plugin has only just been started")
			return
		}
		stop()
	})
	if err != nil {
		err = fmt.Errorf("the plugin cannot work: %w", err)
		log.Error(err)
		server := plugin.Server{Driver: plugin.Broken{Reason: err}, Log: log}
		return server.Serve(ctx, listener)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		places.Watch(ctx, watchInterval, growInterval)
	}()
	server := plugin.Server{Driver: places, Log: log}
	err = server.Serve(ctx, listener)
	ending, cancel := context.WithTimeout(context.Background(), 3500*time.Millisecond)
	defer cancel()
	select { // what it has begun, it ends or takes back
	case <-watched:
	case <-ending.Done():
	}
	places.LetGo(ending)
	return err
}

// newPlaces makes a driver for each pool and namespace, all on one connection.
func newPlaces(log *logrus.Logger, root, run, conf string, restart func()) (places driver.Places, err error) {
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
	hosts := hostMounts(log)
	first := rbd.New(rbd.Config{
		Cluster: values["RBD_CONF_CLUSTER"], ConfFile: conf, User: values["RBD_CONF_KEYRING_USER"],
		Pool: where[0].Pool, Namespace: where[0].Namespace, Log: log,
	})
	for i, place := range where {
		pool, root, run := first, root, run
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
		mapper, why, err := chooseMapper(log, values, pool, run)
		if err != nil {
			return nil, err
		}
		log.Infof("docker-volume-rbd %s on node %s: pool %s, user %s, mapper %s", version, node.Name, place, values["RBD_CONF_KEYRING_USER"], why)
		_, kernel := mapper.(*krbd.Mapper) // clients in userspace wait for the newest OSD map by themselves
		c, err := sabotaged(driver.Config{
			Images: pool, Records: pool, Fences: pool, Secrets: pool, Mapper: mapper,
			Filesystem: fsys.FS{HostMounts: hosts},
			Why:        why,
			Node:       node, Place: place, Trash: trash,
			Defaults: defaults(values), Root: filepath.Dir(mounts), Log: log, Unlock: !kernel,
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

// chooseMapper also tells which it is, and why.
func chooseMapper(log *logrus.Logger, values map[string]string, pool *rbd.Pool, run string) (m driver.Mapper, why string, err error) {
	name, msMode := values["RBD_MAPPER"], values["RBD_MS_MODE"]
	if msMode != "" && !slices.Contains(krbd.MSModes, msMode) {
		return nil, "", fmt.Errorf("setting RBD_MS_MODE=%q: allowed are %s, or nothing", msMode, strings.Join(krbd.MSModes, ", "))
	}
	if !slices.Contains([]string{"auto", "krbd", "fuse"}, name) {
		return nil, "", fmt.Errorf("setting RBD_MAPPER=%q: allowed are auto, krbd, fuse", name)
	}
	why = name + " (RBD_MAPPER)"
	if name != "fuse" {
		missing := krbd.Available()
		switch {
		case name == "krbd" && missing != nil:
			return nil, "", fmt.Errorf("setting RBD_MAPPER=krbd: %w; load the module on the host (modprobe rbd), or set fuse", missing)
		case missing != nil:
			name, why = "fuse", fmt.Sprintf("fuse (%v)", missing)
		case name == "auto":
			name, why = "krbd", "krbd (the kernel has rbd)"
		}
	}
	ceph := pool.Config()
	kernel := &krbd.Mapper{Ceph: pool, Pool: ceph.Pool, Namespace: ceph.Namespace, MSMode: msMode}
	if name == "krbd" {
		return kernel, why, nil
	}
	if m, err = userspace(log, ceph, run); err == nil && krbd.Present() {
		m = krbd.Beside{Mapper: m, Kernel: kernel}
	}
	return m, why, err
}

func userspace(log *logrus.Logger, ceph rbd.Config, run string) (driver.Mapper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if run, err = makeDir(run); err != nil {
		return nil, err
	}
	m := &fuse.Mapper{Ceph: ceph, Dir: run, Command: []string{self, serveImage}, Log: log}
	return m, m.Sweep(context.Background())
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

func thisNode(name string) (driver.Node, error) {
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return driver.Node{}, err
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return driver.Node{Name: name, Boot: strings.TrimSpace(string(boot)), Hosts: hostAddrs}, err
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
