package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The bed that all stories lie in.
var (
	cluster string // directory of the cluster
	engine  string // directory of the engine
	dir     string // directory of the plugin: config.json, rootfs
	plugin  string // the plugin's id
	prefix  string // of every name that this run makes
)

// pluginSettings are those of all stories. What is removed is gone, or what is left of
// all could not be counted.
var pluginSettings = []string{"LOG_LEVEL=debug", "RBD_MAPPER=fuse", "VOLUME_TRASH=0"}

const (
	pluginName = "rbd:latest"
	image      = "busybox:test"
)

func TestMain(m *testing.M) {
	prefix = "e2e-" + strings.ToLower(rand.Text()[:6])
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	failed := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = 1
		}
	}
	stop, err := start()
	defer func() { failed(stop()) }()
	if err == nil {
		var remove func() error
		remove, err = install()
		defer func() { failed(remove()) }()
	}
	if err != nil {
		dumpLog(os.Stderr, 0)
		failed(err)
		return code
	}
	before, err := census()
	failed(err)
	code = m.Run()
	failed(eventually(time.Minute, func() error { return nothingLeft(before) })) // the manager deletes the data of removed images by and by
	if code == 0 {
		fmt.Printf("figure: before all and after it: %v\n", before)
	}
	return code
}

// start makes what test/run.sh has not.
func start() (stop func() error, err error) {
	var stops []func() error
	stop = func() (err error) {
		for _, s := range slices.Backward(stops) {
			err = errors.Join(err, s())
		}
		return err
	}
	cluster, engine, dir = os.Getenv("TEST_CLUSTER"), os.Getenv("TEST_ENGINE"), os.Getenv("TEST_PLUGIN")
	tmp, err := os.MkdirTemp("", "rbd")
	if err != nil {
		return stop, err
	}
	stops = append(stops, func() error { return os.RemoveAll(tmp) })
	for _, part := range []struct {
		dir                 *string
		name, script, start string
	}{
		{&cluster, "c", "cluster.sh", "start"},
		{&engine, "e", "engine.sh", "start"},
	} {
		if *part.dir != "" {
			continue
		}
		*part.dir = filepath.Join(tmp, part.name)
		if _, err := sh(part.script, part.start, *part.dir); err != nil {
			return stop, err
		}
		stops = append(stops, func() error {
			_, err := sh(part.script, "stop", *part.dir)
			return err
		})
	}
	if dir == "" {
		dir = filepath.Join(tmp, "plugin")
		fmt.Println("==> building the managed plugin")
		if _, err := command(15*time.Minute, filepath.Join("..", "..", "cmd", "plugin.sh"), dir); err != nil {
			return stop, err
		}
	}
	return stop, nil
}

// install creates the plugin in the engine, points it at the cluster and
// enables it.
func install() (remove func() error, err error) {
	remove = func() error {
		_, err := try("plugin", "rm", "-f", pluginName)
		return errors.Join(err, noMounts(filepath.Join(engine, "data", "plugins")))
	}
	if _, err = sh("engine.sh", "image", engine); err != nil {
		return remove, err
	}
	if _, err = command(3*time.Minute, "docker", "plugin", "create", pluginName, dir); err != nil {
		return remove, err
	}
	if plugin, err = try("plugin", "inspect", "-f", "{{.ID}}", pluginName); err != nil {
		return remove, err
	}
	if _, err = try(append([]string{"plugin", "set", pluginName, "ceph.source=" + filepath.Join(cluster, "etc-ceph")}, pluginSettings...)...); err != nil {
		return remove, err
	}
	ready := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		for activate() != nil && time.Since(began) < limit {
			time.Sleep(2 * time.Millisecond)
		}
		ready <- time.Since(began)
	}()
	if _, err = try("plugin", "enable", pluginName); err != nil {
		return remove, err
	}
	fmt.Printf("figure: docker plugin enable, first answer on the socket: %d ms\n", (<-ready).Milliseconds())
	return remove, nil
}

// activate asks the plugin what Docker asks first.
func activate() error {
	_, err := ask(5*time.Second, "Plugin.Activate", nil)
	return err
}

// ask sends a request to the plugin's socket, past Docker, and returns the answer.
func ask(limit time.Duration, path string, body io.Reader) (string, error) {
	socket := filepath.Join("/run/docker/plugins", plugin, "rbd.sock")
	client := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	answer, err := client.Post("http://plugin/"+path, "application/json", body)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// limit bounds a command. None takes a tenth of it unless something hangs.
const limit = 90 * time.Second

// command runs a program, and returns what it prints; its error says what it
// says on its standard error.
func command(limit time.Duration, name string, args ...string) (string, error) {
	limit *= 3 // it is that of an idle machine
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(engine, "docker.sock"))
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end within %v", limit)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), err
}

// sh runs one of the scripts of folder test.
func sh(script string, args ...string) (string, error) {
	return command(2*limit, filepath.Join("..", script), args...)
}

// try runs the docker client.
func try(args ...string) (string, error) { return command(limit, "docker", args...) }

// onCluster runs one of Ceph's tools.
func onCluster(tool string, args ...string) (string, error) {
	return command(limit, tool, append([]string{"-c", filepath.Join(cluster, "ceph.conf"), "-p", "rbd"}, args...)...)
}

// noMounts fails if the host has anything mounted below the directory.
func noMounts(dir string) error {
	mounts, err := mountinfo("/proc/self/mountinfo")
	for _, m := range mounts {
		if strings.HasPrefix(m.point, dir+"/") {
			err = errors.Join(err, fmt.Errorf("%s is still mounted (%s on %s)", m.point, m.fstype, m.source))
		}
	}
	return err
}

// mountLine is a line of mountinfo(5).
type mountLine struct{ point, fstype, source string }

func mountinfo(file string) (mounts []mountLine, err error) {
	text, err := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if len(b) > 4 && len(a) > 1 {
			mounts = append(mounts, mountLine{point: b[4], fstype: a[0], source: a[1]})
		}
	}
	return mounts, err
}

// dumpLog writes the plugin's lines of the engine's log.
func dumpLog(w io.Writer, from int64) {
	log, err := os.ReadFile(filepath.Join(engine, "dockerd.log"))
	if err != nil || from > int64(len(log)) {
		return
	}
	for line := range strings.Lines(string(log[from:])) {
		line, ours := strings.CutSuffix(strings.TrimSpace(line), " plugin="+plugin)
		if _, said, ok := strings.Cut(line, " msg="); ours && ok {
			_, _ = fmt.Fprintln(w, strings.ReplaceAll(strings.Trim(said, `"`), `\"`, `"`))
		}
	}
}

// logSize is where the log of the engine ends now.
func logSize() int64 {
	info, err := os.Stat(filepath.Join(engine, "dockerd.log"))
	if err != nil {
		return 0
	}
	return info.Size()
}
