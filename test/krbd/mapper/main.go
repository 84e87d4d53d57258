// Mapper lets a test outside its guest use a mapper inside it: requests are JSON
// over HTTP. See ../contract_test.go for the other end.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/krbd/wire"
)

var log = logrus.New()

type server struct {
	mu      sync.Mutex
	pools   map[rbd.Config]*rbd.Pool
	mappers map[int]*krbd.Mapper
	held    map[string]int
}

func main() {
	listen := flag.String("listen", "", "address")
	flag.Parse()
	if err := krbd.Available(context.Background()); err != nil {
		fail(err)
	}
	s := &server{pools: map[rbd.Config]*rbd.Pool{}, mappers: map[int]*krbd.Mapper{}, held: map[string]int{}}
	http.HandleFunc("/", s.answer)
	web := http.Server{Addr: *listen, ReadHeaderTimeout: time.Minute}
	fail(web.ListenAndServe())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mapper:", err)
	os.Exit(1)
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	var q wire.Request
	var a wire.Answer
	err := json.NewDecoder(r.Body).Decode(&q)
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), q.Limit)
		defer cancel()
		err = s.do(ctx, q, &a)
	}
	a.SetError(err)
	_ = json.NewEncoder(w).Encode(a)
}

// mapper is one that nothing was done with yet, for each new number.
func (s *server) mapper(q wire.Request) *krbd.Mapper {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := rbd.Config{
		Cluster: "ceph", ConfFile: q.Conf, User: q.User, Keyring: q.Keyring, Pool: q.Pool, Namespace: q.Namespace, Log: log,
	}
	if s.pools[cfg] == nil {
		s.pools[cfg] = rbd.New(cfg)
	}
	m := s.mappers[q.Mapper]
	if m == nil {
		m = &krbd.Mapper{Ceph: s.pools[cfg], Pool: q.Pool, Namespace: q.Namespace, MSMode: q.MSMode}
		s.mappers[q.Mapper] = m
	}
	return m
}

// paused lets the network go at the right moment.
type paused struct {
	krbd.Cluster
	pause time.Duration
}

func (p paused) Kernel(ctx context.Context) (rbd.Kernel, error) {
	k, err := p.Cluster.Kernel(ctx)
	time.Sleep(p.pause)
	return k, err
}

func (s *server) do(ctx context.Context, q wire.Request, a *wire.Answer) (err error) {
	switch q.Op {
	case "map":
		m := s.mapper(q)
		if q.Pause > 0 {
			m.Ceph = paused{m.Ceph, q.Pause}
			defer func() { m.Ceph = m.Ceph.(paused).Cluster }()
		}
		a.Mapping, err = m.Map(ctx, q.Image, q.Mode)
	case "unmap":
		err = s.mapper(q).Unmap(ctx, q.Text)
	case "drop":
		err = s.mapper(q).ForceUnmap(ctx, q.Text)
	case "mappings":
		a.Mappings, err = s.mapper(q).Mappings(ctx)
	case "size":
		a.Size, err = s.mapper(q).Size(ctx, q.Mapping)
	case "maps":
		err = s.mapper(q).Supports(q.Image.Features)
	case "takes":
		err = krbd.Takes(q.User, q.Text)
	case "hold":
		var fd int
		if fd, err = unix.Open(q.Device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0); err == nil {
			s.mu.Lock()
			s.held[q.Device] = fd
			s.mu.Unlock()
		}
	case "release":
		s.mu.Lock()
		err = unix.Close(s.held[q.Device])
		s.mu.Unlock()
	case "write":
		err = write(q.Device, q.Text)
	case "read":
		a.Text, err = read(q.Device)
	default:
		err = errors.New("unknown operation " + q.Op)
	}
	return err
}

func sector(device string, flags int, do func(file *os.File, sector []byte) error) error {
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	file, err := os.OpenFile(device, flags|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return do(file, mem[:512])
}

func write(device, text string) error {
	return sector(device, os.O_RDWR, func(file *os.File, sector []byte) error {
		copy(sector, text)
		if _, err := file.WriteAt(sector, 0); err != nil {
			return err
		}
		return file.Sync()
	})
}

func read(device string) (text string, err error) {
	err = sector(device, os.O_RDONLY, func(file *os.File, sector []byte) error {
		_, err := file.ReadAt(sector, 0)
		text = string(bytes.TrimRight(sector, "\x00"))
		return err
	})
	return text, err
}
