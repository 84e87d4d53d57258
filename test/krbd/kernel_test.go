package krbd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/krbd/wire"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// A cluster on IPv6 with three monitors, spoken to in every way that there is.
func TestProtocolsAndMonitors(t *testing.T) {
	dir := filepath.Join(work, "c6")
	_, err := tool.Run(2*time.Minute, "env", "CLUSTER_ADDR=fd00:11:14::1", "CLUSTER_MONS=3", "../cluster.sh", "start", dir)
	must(t, err)
	cfg := rbd.Config{Cluster: "ceph", ConfFile: filepath.Join(dir, "ceph.conf"), User: "client.tests", Pool: "rbd", Log: testbed.Log(t)}
	pool := rbd.New(cfg)
	t.Cleanup(func() {
		pool.Close()
		_, err := tool.Run(time.Minute, "../cluster.sh", "stop", dir)
		must(t, err)
	})
	image := backendtest.Create(t, pool, "image", 8<<20)
	try := func(mode, want string) {
		t.Helper()
		n := one.mappers(t, cfg, mode)
		m := n.Mapper()
		got, err := m.Map(t.Context(), image, backend.ReadWrite)
		must(t, err, n.Write(got.Device, "mode "+mode))
		text, err := n.Read(got.Device)
		must(t, err)
		info, err := one.Sh(quick, "cat /sys/bus/rbd/devices/*/config_info")
		must(t, err, m.Unmap(t.Context(), image.ID))
		mons, options, _ := strings.Cut(info, " ")
		if text != "mode "+mode || !strings.HasPrefix(got.Addr, "[fd00:11:14::11]:0/") || strings.Count(mons, "[fd00:11:14::1]:") != 3 ||
			strings.Contains(options, "ms_mode") != (want != "") || !strings.Contains(options, want) {
			t.Errorf("mode %q: read %q as %s; %s", mode, text, got.Addr, info)
		}
	}
	for mode, want := range map[string]string{
		"": "ms_mode=prefer-crc", "legacy": "", "crc": "ms_mode=crc", "secure": "ms_mode=secure", "prefer-crc": "ms_mode=prefer-crc",
		"prefer-secure": "ms_mode=prefer-secure",
	} {
		try(mode, want)
	}
	pid, err := tool.Run(quick, "cat", filepath.Join(dir, "mon.a.pid"))
	must(t, err)
	_, err = tool.Run(quick, "kill", "-KILL", pid)
	must(t, err)
	try("", "ms_mode=prefer-crc")
}

// Why the kernel does not map, in words.
func TestTheKernelsRefusals(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	ctx := t.Context()
	image := backendtest.Create(t, pool, "image", 8<<20)
	spec := "rbd/" + cfg.Namespace + "/"
	testbed.RBD(t, "create", "--size", "8M", "--image-feature", "layering,exclusive-lock,object-map,journaling", spec+"journal")
	testbed.RBD(t, "create", "--size", "8M", "--image-feature", "layering", spec+"bare")
	open := func(name string) backend.Image {
		h, err := pool.Open(ctx, name, backend.ReadOnly)
		must(t, err)
		defer func() { _ = h.Close(ctx) }()
		return h.Image()
	}
	weak := cfg
	weak.User = "client.weak"
	keyring := testbed.User(t, weak.User, "mon", "profile rbd", "osd", "profile rbd-read-only pool=rbd")
	elsewhere := cfg
	elsewhere.Namespace = "nowhere"
	snapped := image
	snapped.Snap = "never"
	for _, row := range []struct {
		name, mode, keyring string
		cfg                 rbd.Config
		image               backend.Image
		kind                error
		says                []string
	}{
		{"a snapshot that is not there", "", "", cfg, snapped, backend.ErrNotFound, []string{"no such pool, namespace, image or snapshot"}},
		{"a namespace that is not there", "", "", elsewhere, image, nil, []string{"rbd namespace create rbd/nowhere"}},
		{"a feature that no kernel has", "", "", cfg, open("journal"), backend.ErrInvalid, []string{"journaling", "rbd feature disable " + spec + "journal journaling"}},
		{"no exclusive-lock", "", "", cfg, open("bare"), backend.ErrInvalid, []string{"rbd feature enable " + spec + "bare exclusive-lock"}},
		{"an option the kernel does not know", "telepathy", "", cfg, image, backend.ErrInvalid, []string{"the kernel's log says: libceph: ", "ms_mode"}},
		{"a key that may not write", "", keyring, weak, image, nil, []string{"the key lacks caps"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := one.mappers(t, row.cfg, row.mode)
			m := n.Mapper().(remote)
			m.config.Keyring = row.keyring
			got, err := m.Map(ctx, row.image, backend.ReadWrite)
			t.Log(err)
			if err == nil || row.kind != nil && !errors.Is(err, row.kind) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %+v, %v", got, err)
			}
			for _, part := range row.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if left, err := one.devices(); left != "" {
				t.Errorf("left: %s, %v", left, err)
			}
		})
	}
}

// Whether the kernel can use a type of key is tried: before 7.0 it cannot use all.
func TestTheKernelsKeys(t *testing.T) {
	n := one.mappers(t, testbed.Namespace(t), "")
	takes := func(key []byte) error {
		_, err := n.Mapper().(remote).call(t.Context(), wire.Request{Op: "takes", Text: base64.StdEncoding.EncodeToString(key)})
		return err
	}
	made := []byte{0x5c, 0x7d, 0x0b, 0x6b, 1, 2, 3, 4}
	aes := slices.Concat([]byte{1, 0}, made, []byte{16, 0}, bytes.Repeat([]byte{7}, 16))
	aes256k := slices.Concat([]byte{2, 0}, made, []byte{32, 0}, bytes.Repeat([]byte{7}, 32))
	release, err := one.Sh(quick, "uname -r")
	must(t, err, takes(aes))
	major, _, _ := strings.Cut(release, ".")
	switch err := takes(aes256k); {
	case len(major) > 1 || major >= "7":
		must(t, err)
	case err == nil:
		t.Errorf("Linux %s takes a key of type aes256k", release)
	default:
		for _, part := range []string{"this kernel does not take the key of client.", "it is of type aes256k", "this is " + major + ".", "RBD_MAPPER=fuse", "--key-type aes"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
}

// The kernel may go on for a minute after the request has ended. What it makes
// of it is found by the next call for the image, and by a look at sysfs.
func TestWhatTheKernelEndsLate(t *testing.T) {
	cfg := testbed.Namespace(t)
	pool := rbd.New(cfg)
	t.Cleanup(pool.Close)
	image := backendtest.Create(t, pool, "image", 8<<20)
	n := two.mappers(t, cfg, "")
	m := n.Mapper()
	thens := []string{"the network is back"}
	if *long {
		thens = append(thens, "the kernel has given up") // after its minute
	}
	for _, then := range thens {
		t.Run(then, func(t *testing.T) {
			_, err := m.Map(t.Context(), image, backend.ReadWrite) // the control connection stands
			must(t, err, m.Unmap(t.Context(), image.ID))
			result := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), two.Stretch(4*time.Second))
				defer cancel()
				slow := m.(remote)
				slow.config.Pause = two.Stretch(time.Second) // between the question for the monitors and the kernel
				_, err := slow.Map(ctx, image, backend.ReadWrite)
				result <- err
			}()
			two.sleep(500 * time.Millisecond)
			must(t, two.Cut())
			if err := <-result; err == nil {
				t.Fatal("the map was faster than the network's end")
			} else if !strings.Contains(err.Error(), "map in the kernel has not ended in time") {
				t.Errorf("map: %v", err)
			}
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := m.Unmap(short, image.ID); err == nil || !strings.Contains(err.Error(), "an earlier call for this image has not ended (map in the kernel)") {
				t.Errorf("unmap meanwhile: %v", err)
			}
			atIt := func() bool {
				out, err := two.Sh(quick, "cat /proc/[0-9]*/task/*/stack 2>/dev/null | grep -c do_rbd_add; true")
				must(t, err)
				return out != "0"
			}
			if !atIt() {
				t.Error("the kernel is not at it any more")
			}
			if then == "the kernel has given up" {
				must(t, two.within(90*time.Second, func() error {
					if atIt() {
						return errors.New("the kernel is still at it")
					}
					return nil
				}))
			}
			must(t, two.Heal())
			long, cancel := context.WithTimeout(t.Context(), two.Stretch(90*time.Second))
			defer cancel()
			must(t, m.Unmap(long, image.ID))
			if all, err := m.Mappings(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("left: %v, %v", all, err)
			}
			got, err := m.Map(t.Context(), image, backend.ReadWrite)
			must(t, err, n.Write(got.Device, "all is well"), m.Unmap(t.Context(), image.ID))
		})
	}
}
