package rootfs

import (
	"debug/elf"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// registry starts Debian's, and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "version: 0.1\nstorage: {filesystem: {rootdirectory: %s/storage}}\nhttp: {addr: %q}\n", dir, addr), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := tool.Within(20*time.Second, func() error {
		answer, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return addr
}

// push pushes the plugins of both architectures, and installs them as the line says
// that it prints; the one of this machine starts.
func push(t *testing.T, plugins map[string]string) {
	engine, err := os.MkdirTemp("", "rbd") // short enough for the names of sockets
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := tool.Run(3*time.Minute, name, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	script := filepath.Join("..", "engine.sh")
	run(script, "start", engine)
	t.Cleanup(func() { run(script, "stop", engine) })
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(engine, "docker.sock"))
	name := registry(t) + "/ceph/rbd"
	out := run(filepath.Join("..", "..", "cmd", "push.sh"), name+":1.0", "amd64="+plugins["amd64"], "arm64="+plugins["arm64"])
	lines := strings.Split(out, "\n")
	if len(lines) != 4 {
		t.Fatalf("it says %s", out)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		tag := "1.0-" + arch
		request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+strings.Replace(name, "/", "/v2/", 1)+"/manifests/"+tag, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if want := name + ":" + tag + " " + answer.Header.Get("Docker-Content-Digest"); lines[i] != want {
			t.Errorf("it says %q; the registry %q", lines[i], want)
		}
		line, settings := lines[3], " RBD_MAPPER=fuse ceph.source="+t.TempDir()
		if arch != runtime.GOARCH { // what a node of the other architecture would do, but for starting it
			line = strings.NewReplacer("$(docker version -f '{{.Server.Arch}}')", arch, "--alias rbd", "--alias other --disable").Replace(line)
		}
		run("sh", "-c", line+settings)
		alias := map[bool]string{true: "rbd", false: "other"}[arch == runtime.GOARCH]
		id := run("docker", "plugin", "inspect", "-f", "{{.ID}} {{.Enabled}}", alias)
		id, enabled, _ := strings.Cut(id, " ")
		if enabled != fmt.Sprint(arch == runtime.GOARCH) {
			t.Errorf("%s is enabled: %s", alias, enabled)
		}
		program, err := elf.Open(filepath.Join(engine, "data/plugins", id, "rootfs/usr/bin/docker-volume-rbd"))
		if err != nil {
			t.Fatal(err)
		}
		if program.Machine != arches[arch].machine {
			t.Errorf("%s is for %v", tag, program.Machine)
		}
		_ = program.Close()
	}
	run("docker", "plugin", "disable", "-f", "rbd")
}
