package krbd

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestThePluginCrashes(t *testing.T) {
	plugin(t)
	w := watched(t)
	ended := w.write(t, two)
	device := two.device(t)
	must(t, two.stop("KILL", 5*time.Second))
	w.wait(t, two, 20) // the I/O goes on
	must(t, two.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	w.wait(t, two, 20)
	// Docker may mount again, and give back what it had before the crash.
	if _, err := two.mount(w.volume, "another"); err != nil || two.device(t) != device {
		t.Errorf("mounted again on %s, was %s: %v", two.device(t), device, err)
	}
	must(t, two.unmount(w.volume, "another"))
	w.wait(t, two, 20) // the kernel knows of the one that is left
	w.stopped(t, two, ended)
	must(t, two.clean(w.volume, time.Second))
	w.stopped(t, one, w.write(t, one))
}

// Whatever is asked while Ceph is away ends, the plugin itself too, and I/O that
// waits goes on afterwards.
func TestCephIsAway(t *testing.T) {
	plugin(t)
	w := watched(t)
	ended := w.write(t, two)
	idle, other := w.volume+"-idle", w.volume+"-other"
	must(t, one.create(idle), one.create(other))
	_, err := two.mount(idle, "a")
	must(t, err, two.Cut())
	for _, ask := range []struct {
		op, volume, id string
		says           string // "" = it works
	}{
		{"Unmount", idle, "a", "ceph cannot be asked"}, {"Mount", w.volume, "c", ""}, {"Get", idle, "", ""},
		{"Get", other, "", "nobody answers"}, // not known here: an answer would say that there is none
		{"Path", idle, "", ""},
		{"Remove", other, "", "ceph cannot be asked"},
		{"Mount", other, "b", "ceph cannot be asked"},
	} {
		began := time.Now()
		_, err := two.volume(8*time.Second, ask.op, ask.volume, ask.id, nil)
		t.Logf("Ceph is away: %s %s after %v: %v", ask.op, ask.volume, time.Since(began).Round(100*time.Millisecond), err)
		if (err == nil) != (ask.says == "") || err != nil && !strings.Contains(err.Error(), ask.says) {
			t.Errorf("%s %s: got %v, want %q", ask.op, ask.volume, err, ask.says)
		}
	}
	must(t, two.stop("TERM", 8*time.Second))
	must(t, two.Heal())
	w.wait(t, two, 20)
	must(t, two.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	must(t, two.clean(idle, 40*time.Second), two.clean(other, 40*time.Second))
	for _, volume := range []string{idle, other} {
		must(t, one.mountAgain(volume, "d"), one.unmount(volume, "d"))
		_, err := one.volume(time.Minute, "Remove", volume, "", nil)
		must(t, err)
	}
	w.stopped(t, two, ended)
}

// The network goes at some moment of a mount, of which the kernel's part is the
// longest. Nobody waits for it, and nothing is left of it in the end.
func TestTheNetworkGoesDuringAMount(t *testing.T) {
	plugin(t)
	volume := volumeName(t)
	must(t, one.create(volume))
	_, err := one.mount(volume, "a") // it gets its filesystem
	must(t, err, one.unmount(volume, "a"))
	caught := false
	for _, share := range []time.Duration{10, 30, 50, 60, 70, 80, 90} { // percent of how long it takes
		must(t, two.mountAgain(volume, "a"), two.unmount(volume, "a")) // as warm as it will be
		before := time.Now()
		_, err := two.mount(volume, "a")
		moment := time.Since(before) * share / 100
		must(t, err, two.unmount(volume, "a"))
		result := make(chan error, 1)
		go func() {
			_, err := two.volume(4*time.Second, "Mount", volume, "b", nil)
			result <- err
		}()
		time.Sleep(moment)
		must(t, two.Cut())
		err = <-result
		kernel, _ := two.Sh(quick, "cat /proc/*/task/*/stack 2>/dev/null | grep -o 'rbd_[a-z_]*\\|ceph_[a-z_]*' | sort | uniq -c | sort -rn | head -n 3")
		caught = caught || strings.Contains(kernel, "rbd_add")
		t.Logf("cut after %v: %v; in the kernel: %s", moment.Round(time.Millisecond), err, strings.Join(strings.Fields(kernel), " "))
		must(t, two.Heal())
		if err == nil { // it was faster
			must(t, two.unmount(volume, "b"))
		}
		// The other node gets it, and what comes up late is taken away.
		must(t, one.mountAgain(volume, "c"), one.unmount(volume, "c"))
		must(t, two.clean(volume, 100*time.Second))
	}
	if !caught {
		t.Error("the network has gone at no moment at which the kernel was mapping")
	}
	_, err = one.volume(time.Minute, "Remove", volume, "", nil)
	must(t, err)
}

// The kernel's threads of calls that hang are not the plugin's end either.
func TestTheNetworkGoesForGoodDuringAMount(t *testing.T) {
	plugin(t)
	volume := volumeName(t)
	_, err := two.Sh(quick, "echo 10 >/proc/sys/kernel/hung_task_timeout_secs; echo 'test begins' >/dev/kmsg")
	must(t, err, one.create(volume))
	defer func() { _, _ = two.Sh(quick, "echo 120 >/proc/sys/kernel/hung_task_timeout_secs") }()
	go func() { _, _ = two.volume(30*time.Second, "Mount", volume, "b", nil) }()
	two.sleep(120 * time.Millisecond)
	must(t, two.Cut())
	time.Sleep(14 * time.Second)
	must(t, two.stop("TERM", 8*time.Second), two.Heal(), two.start("docker-volume-rbd", "RBD_MAPPER=krbd"))
	must(t, two.clean(volume, 100*time.Second))
	must(t, one.mountAgain(volume, "c"), one.unmount(volume, "c"))
	_, err = one.volume(time.Minute, "Remove", volume, "", nil)
	must(t, err)
	if out, err := two.Sh(quick, "dmesg | sed '1,/test begins/d' | grep -c 'blocked for more than'; true"); err != nil || strings.TrimSpace(out) != "0" {
		t.Error(fmt.Errorf("the kernel has hung tasks: %s %w", out, err))
	}
}

// Who changes the mapper while a volume is in use leaves it to the kernel until
// its last unmount; the next mount is the other mapper's.
func TestTheMapperIsChanged(t *testing.T) {
	plugin(t)
	w := watched(t)
	ended := w.write(t, two)
	device := two.device(t)
	must(t, two.stop("TERM", 8*time.Second), two.start("docker-volume-rbd", "RBD_MAPPER=fuse"))
	path, err := two.mount(w.volume, "another")
	must(t, err)
	if source, err := two.Sh(quick, "findmnt -n -o SOURCE "+path); err != nil || source != device {
		t.Errorf("mounted from %s, not from %s: %v", source, device, err)
	}
	must(t, two.unmount(w.volume, "another"))
	w.wait(t, two, 20)
	w.stopped(t, two, ended)
	must(t, two.clean(w.volume, time.Second))
	_, err = two.Sh(quick, "modprobe -a fuse loop") // udev has it done elsewhere
	must(t, err)
	ended = w.write(t, two)
	if source, err := two.Sh(quick, "findmnt -n -o SOURCE "+path); err != nil || !strings.HasPrefix(source, "/dev/loop") {
		t.Errorf("then mounted from %s: %v", source, err)
	}
	w.stopped(t, two, ended)
}
