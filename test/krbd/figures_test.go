package krbd

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

var metric = regexp.MustCompile(`([\d.e+]+) ([\w/-]+(?:ms|MB/s))`)

// bench runs a benchmark in the guest and returns its figures by name: that of
// the sub-benchmark and that of the metric.
func bench(t *testing.T, n *node, name string, times int, env ...string) map[string]float64 {
	t.Helper()
	out, err := n.Run(10*time.Minute, append(append([]string{"env"}, env...), n.file("inside.test"),
		"-test.run", "^$", "-test.bench", name, "-test.benchtime", fmt.Sprintf("%dx", times))...)
	must(t, err)
	figures := map[string]float64{}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "Benchmark") {
			continue
		}
		which, _, _ := strings.Cut(strings.Fields(line)[0], "-2")
		_, which, _ = strings.Cut(which, "/")
		for _, m := range metric.FindAllStringSubmatch(line, -1) {
			v, err := strconv.ParseFloat(m[1], 64)
			must(t, err)
			figures[strings.TrimPrefix(which+" "+m[2], " ")] = v
		}
	}
	if len(figures) == 0 {
		t.Fatalf("no figures in %s", out)
	}
	return figures
}

// The figures that README and notes quote; nothing is judged by them but that
// the tools, which start processes, are not faster.
func TestFigures(t *testing.T) {
	plugin(t, "LOG_LEVEL=info")
	volume := volumeName(t)
	key := strings.TrimSpace(testbed.Run(t, "sed", "-n", "s/.*key = //p", filepath.Join(filepath.Dir(testbed.Conf()), "ceph.client.docker.keyring")))
	var all []string
	for i := -1; i < 30; i++ {
		name := volume
		if i >= 0 {
			name = fmt.Sprint(volume, i)
		}
		all = append(all, name)
		must(t, one.create(name))
		_, err := one.mount(name, "format")
		must(t, err)
	}
	info, err := one.Sh(quick, "cat /sys/bus/rbd/devices/0/config_info")
	must(t, err)
	for _, name := range all {
		must(t, one.unmount(name, "format"))
	}
	fields := strings.Fields(info) // monitors, options, pool, image, snapshot
	line := strings.Join([]string{fields[0], strings.Replace(fields[1], "key=client.docker", "secret="+key, 1), "rbd", volume, "-"}, " ")
	env := []string{"PLUGIN_SOCKET=" + socket, "VOLUME=" + volume, "ADD_LINE=" + line}

	f := bench(t, one, "Mount", 15, env...)
	for _, what := range []string{"mount-ms", "unmount-ms"} {
		p, parts, s, tools := f["plugin "+what], f["parts "+what], f["syscalls "+what], f["tools "+what]
		t.Logf("figure: %s: system calls alone %.1f; mapper and filesystem %.1f (%+.0f%%); plugin, with the guard, %.1f; rbd map and mount %.1f (%.1f times the plugin)",
			what, s, parts, (parts/s-1)*100, p, tools, tools/p)
		if p >= tools || p == 0 {
			t.Errorf("%s: the plugin takes %.1f, the tools %.1f", what, p, tools)
		}
	}
	f = bench(t, one, "Many", 1, env...)
	for _, what := range []string{"mount-ms", "unmount-ms"} {
		t.Logf("figure: 30 volumes, %s: together %.0f, one after the other %.0f", what, f["together "+what], f["in_turn "+what])
	}

	_, err = one.mount(all[1], "raw")
	must(t, err)
	_, err = one.Sh(quick, "umount "+root+"/volumes/"+all[1]) // its device is the raw one
	must(t, err)
	rawDevice := one.device(t)
	testbed.Passphrase(t, "figures", "open sesame")
	encrypted := volume + "-luks"
	made(t, encrypted, map[string]string{"size": "256M", "encryption": "luks2", "passphrase": "ceph:figures"})
	for _, name := range []string{volume, encrypted} {
		_, err = one.mount(name, "stream")
		must(t, err)
	}
	f = bench(t, one, "Stream", 5, append(env, "RAW_DEVICE="+rawDevice, "VOLUME_MOUNTED="+root+"/volumes/"+volume, "LUKS_MOUNTED="+root+"/volumes/"+encrypted)...)
	for _, what := range []string{"write-MB/s", "read-MB/s"} {
		v, l, r := f["volume-"+what], f["luks-"+what], f["raw-"+what]
		t.Logf("figure: stream %s: volume %.1f, encrypted %.1f, raw device %.1f (%+.1f%%)", what, v, l, r, (v/r-1)*100)
	}
	must(t, one.unmount(volume, "stream"), one.unmount(encrypted, "stream"), one.unmount(all[1], "raw"))
	for _, name := range all {
		_, err := one.volume(time.Minute, "Remove", name, "", nil)
		must(t, err)
	}
}
