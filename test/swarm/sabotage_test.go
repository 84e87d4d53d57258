package swarm

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// With a hole in the plugin's protection the checker finds corruption. If it did
// not, nothing that it does not find elsewhere would mean anything.
func TestTheCheckerFindsCorruption(t *testing.T) {
	t.Parallel() // its swarms are its own
	plugin := os.Getenv("TEST_SABOTAGED_PLUGIN")
	if plugin == "" {
		t.Fatal("TEST_SABOTAGED_PLUGIN names no directory with a plugin that was built with the tag sabotage")
	}
	must(t, declare(filepath.Join(plugin, "config.json"), "SABOTAGE"))
	for hole, story := range map[string]func(t *testing.T, b *Bed, s *Service){
		"guard": func(t *testing.T, b *Bed, s *Service) { must(t, s.RunOn(b.Nodes[1])) },
		"fence": func(t *testing.T, b *Bed, s *Service) {
			must(t, b.Nodes[0].Cut("ceph"), s.RunOn(b.Nodes[1]))
			_, err := s.Writes(time.Minute, b.Nodes[1].Name)
			// Else it might take the mapping away before the network's own retries let it write.
			must(t, err, b.Nodes[0].FreezePlugin(), b.Nodes[0].Heal())
		},
	} {
		t.Run(hole, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "sw")
			must(t, err)
			b, err := Start(dir, plugin, hole)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			must(t, err)
			_, err = b.Ceph("ceph", "config", "set", "osd", "osd_client_watch_timeout", "10")
			must(t, err)
			// The second barrier is Ceph's own: librbd fences the dead owner of a lock.
			must(t, add(filepath.Join(b.cluster(), "etc-ceph", "ceph.conf"), "[client]\nrbd_blocklist_on_break_lock = false\n"))
			s, err := b.Volume("holey", ",volume-opt=size=256M")
			must(t, err, s.RunOn(b.Nodes[0]))
			_, err = s.Writes(time.Minute, "")
			must(t, err)
			story(t, b, s)
			must(t, tool.Within(time.Minute, func() error {
				if len(s.Violations()) == 0 {
					return errors.New("the checker has found nothing")
				}
				return nil
			}))
			t.Logf("without the %s: %v", hole, s.Violations()[0])
			for _, n := range b.Nodes {
				n.Resume()
				_, _ = n.Docker("rm", "-f", s.Name)
			}
			s.listener.Close()
		})
	}
}

// add writes at the end of a file.
func add(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	return err
}

// declare adds a setting to a plugin's configuration.
func declare(file, name string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	env, _ := config["env"].([]any)
	for _, e := range env {
		if e, _ := e.(map[string]any); e["name"] == name {
			return nil
		}
	}
	config["env"] = append(env, map[string]any{"name": name, "value": "", "settable": []string{"value"}})
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
