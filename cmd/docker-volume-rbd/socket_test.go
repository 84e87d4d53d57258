package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram makes the program of the tests the plugin itself.
const asProgram = "TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// activated starts the program as systemd does, which makes the sockets and keeps them.
func activated(t *testing.T, dir string, sockets ...*os.File) *exec.Cmd {
	t.Helper()
	// The number of the process is known to the one that becomes the program.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0],
		"-socket", filepath.Join(dir, "unused"), "-root", filepath.Join(dir, "root"), "-run", filepath.Join(dir, "run"), "-conf", filepath.Join(dir, "none.conf"))
	cmd.Env = append(os.Environ(), asProgram+"=1", "RBD_MAPPER=fuse", "NODE_NAME=activated", "LISTEN_FDS="+string(rune('0'+len(sockets))))
	cmd.ExtraFiles = sockets
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func socket(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// What is asked while the program is not there is answered when it is: at boot, and when
// it is started anew.
func TestASocketOfSystemd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	file := socket(t, path)
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	for range 2 {
		answered := make(chan error, 1)
		go func() {
			answer, err := client.Post("http://plugin/Plugin.Activate", "", nil)
			if err == nil {
				err = answer.Body.Close()
			}
			answered <- err
		}()
		time.Sleep(100 * time.Millisecond) // it is asked by now
		program := activated(t, dir, file)
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		if err := program.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := program.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "unused")); !os.IsNotExist(err) {
		t.Errorf("a socket of its own: %v", err)
	}
}

func TestTwoSocketsOfSystemd(t *testing.T) {
	dir := t.TempDir()
	program := activated(t, dir, socket(t, filepath.Join(dir, "a")), socket(t, filepath.Join(dir, "b")))
	if err := program.Wait(); err == nil {
		t.Error("it serves one of them")
	}
}

// The units are what systemd takes, and name settings and files that are there.
func TestTheUnits(t *testing.T) {
	dir := t.TempDir()
	units, err := filepath.Glob("../../systemd/docker-volume-rbd.*")
	if err != nil || len(units) != 2 {
		t.Fatalf("%v, %v", units, err)
	}
	for i, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(unit, ".socket") && !strings.Contains(string(text), "ListenStream="+flagDefault(t, "socket")+"\n") {
			t.Errorf("%s does not listen where the program does", unit)
		}
		own := strings.ReplaceAll(string(text), "/usr/local/bin/docker-volume-rbd", os.Args[0])
		units[i] = filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(units[i], []byte(own), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// flagDefault asks the program.
func flagDefault(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-help")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	_, after, found := strings.Cut(string(out), "-"+name+" ")
	_, after, _ = strings.Cut(after, `(default "`)
	value, _, _ := strings.Cut(after, `"`)
	if !found || value == "" {
		t.Fatalf("no default of -%s: %v\n%s", name, err, out)
	}
	return value
}
