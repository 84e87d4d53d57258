package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// bootLimit is for one try; a boot takes some 10 s on an idle machine, and ends by
// itself if it fails.
const bootLimit = 6 * time.Minute

// agentPort is where the agent listens in the guest.
const agentPort = 8022

// Guest is a machine: what it is made of, and what it is doing.
type Guest struct {
	Dir    string // short: it holds sockets
	Kernel string // what test/kernel.sh made
	Agent  string // the program of test/guest/agent
	Name   string
	Number int // of the guest in its network, 1 to 99
	MemMB  int
	Serve  []int // ports of the guest that the caller wants to reach

	// Arch is the guest's architecture, as Go calls it; "" = this machine's. Another one needs
	// a tree of Debian's packages of it (cmd/packages.sh), which covers the host's files.
	Arch, Programs string

	qemu  *exec.Cmd
	ended chan struct{}
	ports map[int]int // of the guest, to those on loopback
	pace  pace
}

// Bridge is the name of the bridge that leads to Ceph, Net how the addresses
// behind it begin; Ceph has the first one.
const (
	Bridge = "guests"
	Net    = "10.11.14."
)

// Boot puts the power on and waits for the agent; the guest has nothing of what
// it wrote before. A boot that fails is tried once more: retried tells why, as
// that is no good sign.
func (g *Guest) Boot() (retried, err error) {
	if err = g.start(); err == nil {
		return nil, nil
	}
	retried = err
	_ = g.Kill()
	return retried, g.start()
}

// Addr is its address in the network of Ceph.
func (g *Guest) Addr() string { return fmt.Sprintf("%s%d", Net, 10+g.Number) }

func (g *Guest) tap() string             { return fmt.Sprintf("guest%d", g.Number) }
func (g *Guest) path(name string) string { return filepath.Join(g.Dir, g.Name+"."+name) }
func source(elem ...string) string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(append([]string{filepath.Dir(self)}, elem...)...)
}

func (g *Guest) start() error {
	for _, args := range []string{
		"link set " + g.tap() + " down", "tuntap del mode tap " + g.tap(), // of a guest that was killed
		"tuntap add mode tap " + g.tap(), "link set " + g.tap() + " master " + Bridge + " up",
	} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil && !strings.Contains(args, "down") && !strings.Contains(args, "del") {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	user := "user,id=agent,restrict=on"
	g.ports = map[int]int{}
	for _, port := range append([]int{agentPort}, g.Serve...) {
		free, err := freePort()
		if err != nil {
			return err
		}
		g.ports[port] = free
		user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", free, port)
	}
	log, err := os.OpenFile(g.path("console"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	machine, known := machines[cmp.Or(g.Arch, runtime.GOARCH)]
	if !known {
		return fmt.Errorf("there is no machine of architecture %q", g.Arch)
	}
	mac := fmt.Sprintf("52:54:00:12:34:%02x", g.Number)
	args := []string{"-name", g.Name, "-M", machine.model, "-accel", "tcg,thread=multi", "-cpu", machine.cpu, "-smp", "2",
		"-m", strconv.Itoa(g.MemMB), "-nographic", "-nodefaults", "-serial", "stdio",
		"-kernel", filepath.Join(g.Kernel, "vmlinuz"), "-initrd", filepath.Join(g.Kernel, "initrd"),
		"-append", strings.Join([]string{"console=" + machine.console, "quiet panic=-1 mitigations=off --", source("init.sh"), g.Name, g.Addr() + "/24",
			filepath.Join(g.Kernel, "modules"), g.Agent, strconv.Itoa(agentPort)}, " "),
		"-netdev", user, "-device", "virtio-net-pci,netdev=agent,romfile=",
		"-netdev", "tap,id=ceph,script=no,downscript=no,ifname=" + g.tap(), "-device", "virtio-net-pci,romfile=,netdev=ceph,mac=" + mac,
		"-device", "virtio-rng-pci", "-pidfile", g.path("pid"), "-qmp", "unix:" + g.path("qmp") + ",server=on,wait=off"}
	args = append(args, shared("host", "/")...)
	if g.Programs != "" {
		args = append(args, shared("programs", g.Programs)...)
	}
	cmd := exec.Command(machine.qemu, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	g.qemu, g.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(g.ended)
	return g.waitUp()
}

// machines are what qemu has for an architecture. The Raspberry Pi 5 has this processor.
var machines = map[string]struct{ qemu, model, cpu, console string }{
	"amd64": {"qemu-system-x86_64", "q35", "max", "ttyS0"},
	"arm64": {"qemu-system-aarch64", "virt", "cortex-a76", "ttyAMA0"},
}

// shared lets the guest read a directory, as the tag of 9p.
func shared(tag, dir string) []string {
	return []string{"-fsdev", "local,id=" + tag + ",path=" + dir + ",security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=" + tag + ",mount_tag=" + tag}
}

// waitUp waits until the agent answers.
func (g *Guest) waitUp() error {
	for end := time.Now().Add(bootLimit); ; {
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(g.URL(agentPort) + "/run")
		if err == nil {
			_ = resp.Body.Close()
			return g.measure()
		}
		select {
		case <-g.ended:
			return fmt.Errorf("%s ended while it booted; its console: %s", g.Name, g.console())
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has not booted within %v: %w; its console: %s", g.Name, bootLimit, err, g.console())
		}
	}
}

func (g *Guest) console() string {
	text, _ := os.ReadFile(g.path("console"))
	return string(text[max(0, len(text)-3000):])
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// URL is where a port of Guest.Serve is reached.
func (g *Guest) URL(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", g.ports[port]) }

// Post sends a request to a unix socket in the guest and returns the answer,
// whatever its status is. The limit is that of an idle machine, as in Run.
func (g *Guest) Post(limit time.Duration, socket, path, body string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), g.Stretch(limit))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL(agentPort)+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Socket", socket)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", g.Name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusBadGateway {
		return "", fmt.Errorf("%s: nobody answers on %s", g.Name, socket)
	}
	data, err := io.ReadAll(resp.Body)
	return string(data), err
}

// Run runs a program in the guest and returns what it prints. The limit is that of an
// idle machine; see Stretch.
func (g *Guest) Run(limit time.Duration, args ...string) (string, error) {
	var out strings.Builder
	err := g.Stream(limit, &out, args...)
	return strings.TrimSpace(out.String()), err
}

// Sh runs a line of shell.
func (g *Guest) Sh(limit time.Duration, line string) (string, error) {
	return g.Run(limit, "sh", "-c", line)
}

// Stream runs a program in the guest; what it prints is written as it comes.
func (g *Guest) Stream(limit time.Duration, out io.Writer, args ...string) error {
	limit = g.Stretch(limit)
	seconds := int(limit.Seconds() + 0.999)
	ctx, cancel := context.WithTimeout(context.Background(), limit+g.Stretch(5*time.Second)) // the agent gives up after 3 s
	defer cancel()
	form := url.Values{"arg": args, "limit": {strconv.Itoa(seconds)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL(agentPort)+"/run", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var tail tail
	err = func() error {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if _, err := io.Copy(io.MultiWriter(out, &tail), resp.Body); err != nil {
			return err
		}
		if exit := resp.Trailer.Get("Exit"); exit != "" || resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status + " " + exit)
		}
		return nil
	}()
	if err != nil {
		return fmt.Errorf("%s: %s: %w: %s", g.Name, strings.Join(args, " "), err, strings.TrimSpace(string(tail)))
	}
	return nil
}

// tail keeps the end of what was printed, for errors.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	*t = (*t)[max(0, len(*t)-2000):]
	return len(p), nil
}
