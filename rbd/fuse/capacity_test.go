package fuse_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// setCapacityOf makes the program of the tests grow a loop device.
const setCapacityOf = "TEST_SET_CAPACITY_OF"

// A plugin that is killed while it grows a device leaves it as it was, or larger: never
// with nothing, as containers have it mounted.
func TestAPluginIsKilledWhileItGrowsADevice(t *testing.T) {
	if device := os.Getenv(setCapacityOf); device != "" {
		_ = fuse.SetCapacity(device)
		return
	}
	_, _, dir, mapping, m := mapped(t, 8<<20)
	sectors := func() int {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(mapping.Device), "size"))
		n, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || parseErr != nil {
			t.Fatal(err, parseErr)
		}
		return n
	}
	resume := testbed.StopServer(t, dir, mapping.ID)
	defer resume()
	plugin := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	plugin.Env = append(os.Environ(), setCapacityOf+"="+mapping.Device)
	if err := plugin.Start(); err != nil {
		t.Fatal(err)
	}
	// Until somebody asks the server, which has stopped.
	for end := time.Now().Add(time.Minute); !asking(t); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody asks for the size")
		}
	}
	_ = plugin.Process.Kill()
	_ = plugin.Wait()
	time.Sleep(200 * time.Millisecond)
	if n := sectors(); n != 8<<20/512 {
		t.Errorf("the device has %d sectors", n)
	}
	resume()
	for end := time.Now().Add(time.Minute); asking(t); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("who asked does not end")
		}
	}
	if n := sectors(); n != 8<<20/512 {
		t.Errorf("the device has %d sectors in the end", n)
	}
	if err := m.Unmap(t.Context(), mapping.ID); err != nil {
		t.Fatal(err)
	}
}

// asking tells whether any process waits in LOOP_SET_CAPACITY.
func asking(t *testing.T) bool {
	t.Helper()
	const loopSetCapacity = "0x4c07"
	calls, err := filepath.Glob("/proc/[0-9]*/task/*/syscall")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range calls {
		text, _ := os.ReadFile(path) // it may have ended
		if fields := strings.Fields(string(text)); len(fields) > 2 && fields[0] == fmt.Sprint(unix.SYS_IOCTL) && fields[2] == loopSetCapacity {
			return true
		}
	}
	return false
}
