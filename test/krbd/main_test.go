package krbd

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/guest"
)

// work is the directory that test/krbd.sh has filled.
var work = os.Getenv("TEST_KRBD")

// pluginDir has the built managed plugin.
var pluginDir = os.Getenv("TEST_PLUGIN")

// The ports that guests serve.
const (
	mapperPort = 9000
	dockerPort = 2375
)

var one, two *node

// long is for the nights.
var long = flag.Bool("long", false, "wait for the kernel's own time limits too")

func TestMain(m *testing.M) {
	flag.Parse()
	if work == "" {
		fmt.Fprintln(os.Stderr, "krbd: TEST_KRBD is not set; run test/krbd.sh")
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	began := time.Now()
	nodes := []*node{newNode(1, os.Getenv("TEST_GUEST_ARCH")), newNode(2, "")}
	one, two = nodes[0], nodes[1]
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		defer func() { _ = n.Kill() }()
		wg.Go(func() { errs[i] = n.boot() })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, "krbd:", err)
			return 1
		}
	}
	fmt.Printf("==> two guests are up after %v, %.1f and %.1f times as slow as on an idle machine\n",
		time.Since(began).Round(time.Second), one.Slowness(), two.Slowness())
	fmt.Printf("==> cell: %s; %s\n", one.about(), two.about())
	return m.Run()
}

// newNode is a guest of an architecture, as Go calls it; "" = this machine's.
func newNode(number int, arch string) *node {
	n := &node{Guest: &guest.Guest{
		Dir: work, Name: fmt.Sprintf("node%d", number), Number: number, MemMB: 3072, Serve: []int{mapperPort, dockerPort}, Arch: arch,
	}}
	if arch != "" {
		n.Programs = n.file("root")
	}
	n.Kernel, n.Agent = n.file("kernel"), n.file("agent")
	return n
}

// about tells of the node's kernel.
func (n *node) about() string {
	out, err := n.Sh(quick, `echo "Linux $(uname -r), $(uname -m), pages of $(($(getconf PAGESIZE) / 1024)) KiB"`)
	return cmp.Or(out, fmt.Sprint(err))
}

// file is one of those that test/krbd.sh has made for the node's architecture.
func (n *node) file(name string) string { return filepath.Join(work, n.Arch, name) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// volumeName names a volume after its test.
func volumeName(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("Test", "", "/", "-", "_", "-", ",", "").Replace(t.Name()))
}
