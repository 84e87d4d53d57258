package guest

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"time"
)

// Kill is a power cut.
func (g *Guest) Kill() error {
	if g.qemu == nil {
		return nil
	}
	g.spoil()
	if g.pace.stop != nil {
		g.pace.stop()
	}
	_ = g.qemu.Process.Kill()
	<-g.ended
	g.qemu = nil
	return nil
}

// Pause stops its processors.
func (g *Guest) Pause() error {
	g.spoil()
	return g.monitor("stop")
}

// Resume lets them go on.
func (g *Guest) Resume() error {
	g.spoil() // what was begun while it was paused
	return g.monitor("cont")
}

// Cut takes it off Ceph's network without its notice.
func (g *Guest) Cut() error { return g.link("down") }

// Heal puts it back.
func (g *Guest) Heal() error { return g.link("up") }

func (g *Guest) link(state string) error {
	if out, err := exec.Command("ip", "link", "set", g.tap(), state).CombinedOutput(); err != nil {
		return fmt.Errorf("link of %s %s: %w: %s", g.Name, state, err, out)
	}
	return nil
}

// monitor gives qemu a command (QMP).
func (g *Guest) monitor(command string) error {
	conn, err := net.DialTimeout("unix", g.path("qmp"), 30*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	in := json.NewDecoder(conn)
	var greeting json.RawMessage
	if err := in.Decode(&greeting); err != nil {
		return err
	}
	for _, c := range []string{"qmp_capabilities", command} {
		if err := json.NewEncoder(conn).Encode(map[string]string{"execute": c}); err != nil {
			return err
		}
		for { // events may come before the answer
			var answer struct{ Return, Error json.RawMessage }
			if err := in.Decode(&answer); err != nil {
				return err
			}
			if answer.Error != nil {
				return fmt.Errorf("%s: qemu's %s: %s", g.Name, c, answer.Error)
			}
			if answer.Return != nil {
				break
			}
		}
	}
	return nil
}
