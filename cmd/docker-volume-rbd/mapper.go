package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
)

// modulePatience is how long requests wait, unanswered, for the kernel's module when
// the plugin starts. Docker waits for at least 30 s.
const modulePatience = 20 * time.Second

// kernel looks for what the mapper needs of the kernel, if it is the kernel's; missing
// tells why it is not there. While the module is being loaded requests wait for their
// answers, but not for ever: then it is an error of its own, and nobody takes the
// other mapper instead, for the plugin's whole life.
func (s service) kernel(ctx context.Context, mapper string) (missing, err error) {
	if mapper != "auto" && mapper != "krbd" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	if missing = s.module(ctx); errors.Is(missing, krbd.ErrLate) {
		return nil, fmt.Errorf("setting RBD_MAPPER=%s: %w; as soon as it is there the plugin works, see modprobe and the kernel's log on this node", mapper, missing)
	}
	return missing, nil
}

// chooseMapper also tells which it is, and why; missing is why the kernel cannot map.
func chooseMapper(log *logrus.Logger, values map[string]string, missing error, pool *rbd.Pool, run string) (m backend.Mapper, why string, err error) {
	name, msMode := values["RBD_MAPPER"], values["RBD_MS_MODE"]
	if msMode != "" && !slices.Contains(krbd.MSModes, msMode) {
		return nil, "", fmt.Errorf("setting RBD_MS_MODE=%q: allowed are %s, or nothing", msMode, strings.Join(krbd.MSModes, ", "))
	}
	if !slices.Contains([]string{"auto", "krbd", "fuse"}, name) {
		return nil, "", fmt.Errorf("setting RBD_MAPPER=%q: allowed are auto, krbd, fuse", name)
	}
	why = name + " (RBD_MAPPER)"
	ceph := pool.Config()
	if name != "fuse" {
		switch {
		case name == "krbd" && errors.Is(missing, krbd.ErrKey):
			return nil, "", fmt.Errorf("setting RBD_MAPPER=krbd: %w", missing)
		case name == "krbd" && missing != nil:
			return nil, "", fmt.Errorf("setting RBD_MAPPER=krbd: %w; load the module on the host (modprobe rbd), or set fuse", missing)
		case missing != nil:
			name, why = "fuse", fmt.Sprintf("fuse (%v)", missing)
		case name == "auto":
			name, why = "krbd", "krbd (the kernel has rbd)"
		}
	}
	kernel := &krbd.Mapper{Ceph: pool, Pool: ceph.Pool, Namespace: ceph.Namespace, MSMode: msMode}
	if name == "krbd" {
		return kernel, why, nil
	}
	if m, err = userspace(log, ceph, run); err == nil && krbd.Present() {
		m = krbd.Beside{Mapper: m, Kernel: kernel}
	}
	return m, why, err
}

// refusesKey tells why the kernel cannot use the user's key, if it surely cannot. What else
// is wrong with it, or that there is none yet, who connects will say.
func refusesKey(ceph rbd.Config) error {
	key, err := ceph.Key()
	if err == nil {
		err = krbd.Takes(ceph.User, key)
	}
	if errors.Is(err, krbd.ErrKey) {
		return err
	}
	return nil
}

func userspace(log *logrus.Logger, ceph rbd.Config, run string) (backend.Mapper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if run, err = makeDir(run); err != nil {
		return nil, err
	}
	m := &fuse.Mapper{Ceph: ceph, Dir: run, Command: []string{self, serveImage}, Log: log}
	return m, m.Sweep()
}
