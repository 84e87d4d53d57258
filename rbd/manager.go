package rbd

import (
	"context"
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rbd/admin"
)

func (p *Pool) flatten(ctx context.Context, image string) error {
	err := p.byManager(ctx, func(t *admin.TaskAdmin) error {
		_, err := t.AddFlatten(admin.NewImageSpec(p.cfg.Pool, p.cfg.Namespace, image))
		return err
	})
	if err != nil {
		return fmt.Errorf("have the manager flatten %s/%s: %w", p.poolSpec(), image, err)
	}
	return nil
}

// byManager gives the manager a task. A manager that hangs, or has no space to note
// the task, answers late or never, and librados must not be the one to give up:
// after rados_mon_op_timeout rados_mgr_command returns, and when the answer comes
// it is written to what was its stack (16.2: the process crashes). So it gets a
// connection without that limit; one at a time, as it may hang.
func (p *Pool) byManager(ctx context.Context, task func(*admin.TaskAdmin) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := p.manager.take(ctx); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer p.manager.free()
		conn, err := Connect(p.cfg, map[string]string{
			"client_mount_timeout": timeouts["client_mount_timeout"], "admin_socket": "", "rados_mon_op_timeout": "0",
		})
		if err == nil {
			err = task(admin.NewFromConn(conn).Task())
			conn.Shutdown()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Managers asks the monitors; see backend.Handle. The profile rbd alone does not allow
// that. After a change of managers the list is empty for a moment (16.2).
func (h *handle) Managers(ctx context.Context) ([]string, error) {
	var addrs []string
	err := h.call(ctx, "ask for the manager", reads, func() error {
		out, err := monCommand(h.client.conn, map[string]any{"prefix": "mgr dump", "format": "json"})
		if errno(err) == syscall.EACCES || errno(err) == syscall.EPERM {
			return nil
		}
		if err == nil {
			addrs, err = managers(out)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return addrs, nil
}

// managers reads which clients the active manager has, as watchers show them: the
// module rbd_support does the tasks.
func managers(dump []byte) (addrs []string, err error) {
	var answer struct {
		Clients []struct {
			Name    string
			AddrVec []struct {
				Addr  string
				Nonce uint64
			}
		} `json:"active_clients"`
	}
	if err := json.Unmarshal(dump, &answer); err != nil {
		return nil, fmt.Errorf("answer of mgr dump: %w", err)
	}
	for _, c := range answer.Clients {
		for _, a := range c.AddrVec {
			if c.Name == "rbd_support" {
				addrs = append(addrs, fmt.Sprintf("%s/%d", a.Addr, a.Nonce))
			}
		}
	}
	return addrs, nil
}
