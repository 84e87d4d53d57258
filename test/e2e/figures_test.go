package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the README tells of size and speed. Nothing is judged here.
func TestFigures(t *testing.T) {
	story(t)
	rootfs, err := command(limit, "du", "-sm", filepath.Join(dir, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	figure(t, "root filesystem", strings.Fields(rootfs)[0]+" MB")

	docker(t, "plugin", "disable", "-f", pluginName)
	t.Cleanup(enable)
	docker(t, "plugin", "enable", pluginName)
	docker(t, "volume", "ls")
	pid, err := pluginPID()
	if err != nil {
		t.Fatal(err)
	}
	figure(t, "plugin, idle, RSS", memory(t, pid, "status", "VmRSS"))
	figure(t, "plugin, idle, PSS", memory(t, pid, "smaps_rollup", "Pss"))

	const rounds = 5
	var create, first, again, shared []time.Duration
	for range rounds {
		var name string
		create = append(create, timed(func() { name = newVolume(t) }))
		run := func() { docker(t, "run", "--rm", "--network=none", "-v", name+":/data", image, "true") }
		first = append(first, timed(run))
		again = append(again, timed(run))
		c := container(t, on(name))
		shared = append(shared, timed(run))
		if len(create) == rounds {
			processes, err := pluginProcesses()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range processes {
				if len(p.args) > 1 && p.pid == slices.MaxFunc(processes, func(a, b process) int { return a.pid - b.pid }).pid {
					figure(t, "image server of a mounted volume, PSS", memory(t, p.pid, "smaps_rollup", "Pss"))
				}
			}
		}
		docker(t, "rm", "-f", c)
	}
	var none []time.Duration
	for range rounds {
		none = append(none, timed(func() { docker(t, "run", "--rm", "--network=none", image, "true") }))
	}
	figure(t, "docker volume create", median(create))
	figure(t, "docker run, no volume", median(none))
	figure(t, "docker run, first mount, makes ext4", median(first))
	figure(t, "docker run, volume not on this node", median(again))
	figure(t, "docker run, volume mounted here already", median(shared))
}

func figure(t *testing.T, what, value string) {
	t.Helper()
	t.Logf("figure: %s: %s", what, value)
}

func timed(fn func()) time.Duration {
	start := time.Now()
	fn()
	return time.Since(start)
}

func median(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("%d ms", all[len(all)/2].Milliseconds())
}

// memory reads a line "KEY: N kB" of a file of /proc/PID.
func memory(t *testing.T, pid int, file, key string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + key + `:\s+(\d+)\d{3} kB$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in %s of process %d", key, file, pid)
	}
	return string(found[1]) + " MB"
}
