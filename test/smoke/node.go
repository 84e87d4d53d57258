package smoke

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// node is a machine with the plugin, as its users see it.
type node interface {
	create(volume string, options ...string) error
	remove(volume string) error
	// once has a container of its own run the script, in the volume.
	once(volume, script string) (string, error)
	// hold starts a container that has the volume until it is ended.
	hold(volume string) (user, error)
	// socket is where the plugin answers.
	socket() string
	// processes are those of the plugin.
	processes() ([]int, error)
	stop() error
	log() string
}

// user is a container that has a volume.
type user interface {
	run(script string) (string, error)
	end() error
}

// program is the plugin in its root filesystem as Docker would start it, without
// Docker: what asks is this test, and a container is a shell in the volume's directory.
type program struct {
	dir, root string
	cmd       *exec.Cmd
	ids       int
}

func startProgram(dir, name, plugin, ceph string) (*program, error) {
	p := &program{dir: dir, root: filepath.Join(dir, "root")}
	for _, sub := range []string{p.root, filepath.Join(dir, "shared")} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return p, err
		}
	}
	const shared = "var/lib/docker-volume-rbd"
	for _, m := range [][]string{
		{"--bind", filepath.Join(plugin, "rootfs"), ""}, {"-o", "remount,bind,ro", ""},
		{"--rbind", "/dev", "dev"}, {"--rbind", "/sys", "sys"}, {"--rbind", "/proc", "proc"},
		{"--bind", "/lib", "host/lib"}, {"-o", "remount,bind,ro", "host/lib"},
		{"--bind", ceph, "etc/ceph"}, {"--bind", filepath.Join(dir, "shared"), shared}, {"--make-shared", shared},
		{"-t", "tmpfs", "tmpfs", "run"}, {"-t", "tmpfs", "tmpfs", "tmp"},
	} {
		m[len(m)-1] = filepath.Join(p.root, m[len(m)-1])
		if _, err := tool.Run(10*time.Second, "mount", m...); err != nil {
			return p, err
		}
	}
	if err := os.MkdirAll(filepath.Join(p.root, "run/docker/plugins"), 0o755); err != nil {
		return p, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return p, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("chroot", p.root, "/usr/bin/docker-volume-rbd")
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NODE_NAME=" + name}, settings...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return p, err
	}
	p.cmd = cmd
	return p, tool.Within(20*time.Second, func() error { return ask(p.socket(), "Plugin.Activate", nil, nil) })
}

func (p *program) socket() string { return filepath.Join(p.root, "run/docker/plugins/rbd.sock") }

func (p *program) log() string {
	text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(text)
}

func (p *program) create(volume string, options ...string) error {
	opts := map[string]string{}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		opts[key] = value
	}
	return ask(p.socket(), "VolumeDriver.Create", map[string]any{"Name": volume, "Opts": opts}, nil)
}

func (p *program) remove(volume string) error {
	return ask(p.socket(), "VolumeDriver.Remove", map[string]any{"Name": volume}, nil)
}

func (p *program) once(volume, script string) (string, error) {
	u, err := p.hold(volume)
	if err != nil {
		return "", err
	}
	out, err := u.run(script)
	return out, errors.Join(err, u.end())
}

func (p *program) hold(volume string) (user, error) {
	p.ids++
	u := shell{p: p, volume: volume, id: strconv.Itoa(p.ids)}
	var answer struct{ Mountpoint string }
	if err := ask(p.socket(), "VolumeDriver.Mount", map[string]any{"Name": volume, "ID": u.id}, &answer); err != nil {
		return nil, err
	}
	u.path = filepath.Join(p.root, answer.Mountpoint)
	return u, nil
}

func (p *program) processes() ([]int, error) { return inside(p.cmd.Process.Pid) }

func (p *program) stop() error {
	var err error
	if p.cmd != nil {
		killed := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
		defer killed.Stop()
		err = errors.Join(p.cmd.Process.Signal(unix.SIGTERM), p.cmd.Wait())
	}
	_, failed := tool.Run(limit, "umount", "-R", p.root)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return os.RemoveAll(p.dir) // only now: this machine's /dev was below it
}

// shell is a user of a volume that this test itself is.
type shell struct {
	p                *program
	volume, id, path string
}

func (u shell) run(script string) (string, error) {
	return tool.Run(limit, "sh", "-ec", "cd "+u.path+"\n"+script)
}

func (u shell) end() error {
	return ask(u.p.socket(), "VolumeDriver.Unmount", map[string]any{"Name": u.volume, "ID": u.id}, nil)
}

// inside lists a process, and all that it has started and those have.
func inside(pid int) (all []int, err error) {
	all = []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		if err != nil {
			return nil, err
		}
		for _, file := range tasks {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended
			}
			for child := range strings.FieldsSeq(string(text)) {
				n, err := strconv.Atoi(child)
				if err != nil {
					return nil, err
				}
				all = append(all, n)
			}
		}
	}
	return all, nil
}

// ask sends a request to a plugin's socket.
func ask(socket, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	response, err := client.Post("http://plugin/"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(response.Body); err != nil {
		return err
	}
	var said struct{ Err string }
	if err := json.Unmarshal(text.Bytes(), &said); err != nil {
		return fmt.Errorf("%s: %w: %s", path, err, &text)
	}
	if said.Err != "" {
		return fmt.Errorf("%s: %s", path, said.Err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text.Bytes(), answer)
}
