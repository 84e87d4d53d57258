package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// reinstalled changes settings as an admin does, and takes them back after the test.
func reinstalled(t *testing.T, settings ...string) {
	t.Helper()
	set := func(settings ...string) {
		docker(t, "plugin", "disable", "-f", pluginName)
		docker(t, append([]string{"plugin", "set", pluginName}, settings...)...)
		docker(t, "plugin", "enable", "--timeout", "0", pluginName)
	}
	before := map[string]string{}
	for line := range strings.FieldsSeq(docker(t, "plugin", "inspect", "-f", `{{range .Settings.Env}}{{println .}}{{end}}`, pluginName)) {
		name, value, _ := strings.Cut(line, "=")
		before[name] = value
	}
	set(settings...)
	t.Cleanup(func() {
		var back []string
		for _, s := range settings {
			name, _, _ := strings.Cut(s, "=")
			if name == "ceph.source" {
				before[name] = filepath.Join(cluster, "etc-ceph")
			}
			back = append(back, name+"="+before[name])
		}
		set(back...)
	})
}

// askSnapshot asks the plugin's socket, as the README shows.
func askSnapshot(t *testing.T, op, volume, name string) map[string]any {
	t.Helper()
	out, err := ask(30*time.Second, "Snapshot."+op, strings.NewReader(fmt.Sprintf(`{"volume":%q,"snapshot":%q}`, volume, name)))
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return answer
}

// A volume, a snapshot of it while it is in use, a copy, a read-only look at it, and
// the way back.
func TestCopies(t *testing.T) {
	story(t)
	name := newVolume(t, "size=64M", "labels=team=blue,tier=db", "description=the first one")
	c := container(t, on(name))
	write(t, c, "monday")
	equal(t, "frozen", askSnapshot(t, "Create", name, "monday")["frozen"], any(true))
	list := fmt.Sprint(askSnapshot(t, "List", name, "")["snapshots"])
	if !regexp.MustCompile(`^\[map\[created:20[-0-9]+T[:0-9]+Z size:6.7108864e\+07 snapshot:monday\]\]$`).MatchString(list) {
		t.Errorf("list of snapshots: %s", list)
	}
	write(t, c, "tuesday")
	v := inspect(t, name)
	equal(t, "snapshots", fmt.Sprint(v.Status["snapshots"]), "[monday]")
	equal(t, "labels", fmt.Sprint(v.Status["labels"]), "map[team:blue tier:db]")
	equal(t, "description", v.Status["description"], any("the first one"))
	for _, key := range []string{"features", "object-size", "trash", "filesystem-size", "filesystem-used"} {
		if s, _ := v.Status[key].(string); s == "" {
			t.Errorf("status %s is missing: %v", key, v.Status)
		}
	}

	now := newVolume(t, "from="+name)
	then := newVolume(t, "from="+name+"@monday", "labels=team=red")
	look := newVolume(t, "snapshot="+name+"@monday")
	equal(t, "the copy", once(t, now, "cat /data/file; echo changed >/data/file"), "tuesday")
	equal(t, "the copy of then", once(t, then, "cat /data/file"), "monday")
	for range 2 {
		equal(t, "the snapshot", once(t, look, "cat /data/file; ! touch /data/x 2>/dev/null"), "monday")
	}
	equal(t, "the original", in(t, c, "cat /data/file"), "tuesday")
	v = inspect(t, then)
	contains(t, "parent", fmt.Sprint(v.Status["parent"]), "rbd/"+name+"@")
	equal(t, "labels", fmt.Sprint(v.Status["labels"]), "map[team:red]")
	equal(t, "description", v.Status["description"], nil)

	said := fmt.Sprint(askSnapshot(t, "Rollback", name, "monday")["Err"])
	contains(t, "roll-back while it is mounted", said, "roll back volume "+name+": ", "containers use it on this node")
	docker(t, "rm", "-f", c)
	equal(t, "roll-back", fmt.Sprint(askSnapshot(t, "Rollback", name, "monday")), "map[]")
	equal(t, "after the roll-back", once(t, name, "cat /data/file"), "monday")
	contains(t, "docker volume rm", dockerFails(t, "volume", "rm", name), "the image has 1 snapshots")
	equal(t, "remove the snapshot", fmt.Sprint(askSnapshot(t, "Remove", name, "monday")), "map[]")
	equal(t, "the look at what was removed", once(t, look, "cat /data/file"), "monday")
	for _, bad := range []struct{ option, says string }{
		{"from=nowhere", "option from: there is no volume nowhere"},
		{"from=" + name + "@sunday", "snapshot sunday of volume " + name},
		{"snapshot=" + name, "give VOLUME@SNAPSHOT"},
		{"readonly=true", "a new volume must be written once"},
		{"readonly=perhaps", "allowed are true and false"},
		{"labels==x", "give KEY=TEXT,KEY=TEXT"},
		{"encryption=luks2", "name its passphrase"},
		{"encryption=rot13", "allowed are luks2, luks1, none"},
		{"passphrase=file:x", "say encryption=luks2 too"},
		{"stripe-unit=64K", "give both or none"},
	} {
		refused(t, bad.says, "-o", bad.option)
	}
}

// An encrypted volume, with a passphrase in a file of the node; it is not in any
// place where somebody could look.
func TestEncryption(t *testing.T) {
	story(t)
	secrets := filepath.Join(cluster, "etc-ceph", "passphrases")
	const passphrase = "correct-horse-battery"
	if err := os.MkdirAll(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(secrets, "home")
	t.Cleanup(func() { _ = os.Remove(file) })
	refused(t, "there is no file /etc/ceph/passphrases/home on this node", "-o", "encryption=luks2", "-o", "passphrase=file:home")
	if err := os.WriteFile(file, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"luks2", "luks1"} {
		name := newVolume(t, "size=64M", "encryption="+format, "passphrase=file:home")
		equal(t, "first", once(t, name, "echo the plain text >/data/file; cat /data/file"), "the plain text")
		raw := filepath.Join(t.TempDir(), "raw")
		ceph(t, "rbd", "export", "--no-progress", name, raw)
		data, err := os.ReadFile(raw)
		if err != nil || !strings.HasPrefix(string(data), "LUKS\xba\xbe") || strings.Contains(string(data), "the plain text") {
			t.Errorf("what is in the pool begins with %q, %v", data[:8], err)
		}
		equal(t, "encryption", inspect(t, name).Status["encryption"], any(format))
		c := container(t, on(name))
		processes, err := pluginProcesses()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range processes {
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
			if strings.Contains(strings.Join(p.args, " ")+string(environ), passphrase) {
				t.Errorf("process %d shows the passphrase", p.pid)
			}
		}
		contains(t, "docker volume inspect", fmt.Sprint(inspect(t, name)), "file:home")
		docker(t, "rm", "-f", c)
		if err := os.WriteFile(file, []byte("another one"), 0o600); err != nil {
			t.Fatal(err)
		}
		said := dockerFails(t, "run", "--rm", "--network=none", on(name), image, "true")
		contains(t, "docker run", said, "the passphrase does not open the encrypted image")
		if err := os.WriteFile(file, []byte(passphrase), 0o600); err != nil {
			t.Fatal(err)
		}
		equal(t, "again", once(t, name, "cat /data/file"), "the plain text")
	}
	log, err := os.ReadFile(filepath.Join(engine, "dockerd.log"))
	if err != nil || strings.Contains(string(log), passphrase) {
		t.Errorf("the passphrase is in the log (%v)", err)
	}
}

// bare runs Ceph's rbd without a pool of its own choice.
func bare(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryBare(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryBare(args ...string) (string, error) {
	return command(limit, "rbd", append([]string{"-c", filepath.Join(cluster, "ceph.conf")}, args...)...)
}

// A second pool and a namespace, a trash, and a node that was made anew: it has
// every volume back, with its options, from the plugin and Ceph alone.
func TestPoolsTrashAndANewNode(t *testing.T) {
	story(t)
	pool, space := strings.ToLower(prefix)+"-ssd", "home"
	admin(t, "osd", "pool", "create", pool, "4")
	admin(t, "osd", "pool", "application", "enable", pool, "rbd")
	bare(t, "namespace", "create", "rbd/"+space)
	caps := func(pools string) {
		admin(t, "auth", "caps", "client.docker", "mon", `profile rbd, allow command "mgr dump"`, "osd", pools, "mgr", pools)
	}
	caps("profile rbd pool=rbd, profile rbd pool=" + pool)
	t.Cleanup(func() {
		caps("profile rbd pool=rbd")
		bare(t, "namespace", "rm", "rbd/"+space)
		admin(t, "osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it")
	})
	reinstalled(t, "RBD_POOLS="+pool+" rbd/"+space, "VOLUME_TRASH=1h")

	here, fast, home := unique(t), unique(t), unique(t)
	create(t, here, "size=64M", "protected=true")
	create(t, fast, "size=64M", "pool="+pool, "labels=team=blue", "description=on the fast disks", "mountOptions=noatime,commit=9")
	create(t, home, "size=64M", "namespace="+space)
	for _, name := range []string{here, fast, home} {
		equal(t, "written", once(t, name, "echo "+name+" >/data/file; cat /data/file"), name)
		if !listed(t, name) {
			t.Errorf("docker volume ls does not list %s", name)
		}
	}
	equal(t, "pool", inspect(t, fast).Status["pool"], any(pool))
	equal(t, "namespace", inspect(t, home).Status["namespace"], any(space))
	refused(t, "this plugin's volumes are in rbd, "+pool+", rbd/"+space, "-o", "pool=nowhere")
	contains(t, "docker volume rm", dockerFails(t, "volume", "rm", here), "the volume is protected")
	copied := unique(t)
	create(t, copied, "from="+here, "pool="+pool)
	equal(t, "a copy in another pool", once(t, copied, "cat /data/file"), here)

	// A name that is there twice.
	bare(t, "create", "--size=8M", pool+"/"+here)
	said := dockerFails(t, "run", "--rm", "--network=none", on(here), image, "true")
	contains(t, "docker run", said, "there are two volumes of this name", "rbd/"+here, pool+"/"+here)
	bare(t, "rm", "--no-progress", pool+"/"+here)

	// Out of the trash.
	docker(t, "volume", "rm", fast)
	if listed(t, fast) {
		t.Error("docker volume ls lists what was removed")
	}
	id := ""
	for line := range strings.Lines(bare(t, "trash", "ls", pool)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == fast {
			id = f[0]
		}
	}
	bare(t, "trash", "restore", pool+"/"+id)

	// All nodes are wiped: of this one only Ceph is left.
	settings := strings.Fields(docker(t, "plugin", "inspect", "-f", `{{range .Settings.Env}}{{println .}}{{end}}`, pluginName))
	docker(t, "plugin", "rm", "-f", pluginName)
	if _, err := command(3*time.Minute, "docker", "plugin", "create", pluginName, dir); err != nil {
		t.Fatal(err)
	}
	plugin = docker(t, "plugin", "inspect", "-f", "{{.ID}}", pluginName)
	docker(t, append([]string{"plugin", "set", pluginName, "ceph.source=" + filepath.Join(cluster, "etc-ceph")}, pluginSettings...)...)
	for _, s := range settings {
		if strings.HasPrefix(s, "VOLUME_TRASH=") || strings.HasPrefix(s, "RBD_MAPPER=") {
			docker(t, "plugin", "set", pluginName, s)
		}
	}
	docker(t, "plugin", "set", pluginName, "RBD_POOLS="+pool+" rbd/"+space)
	docker(t, "plugin", "enable", "--timeout", "0", pluginName)
	for _, name := range []string{here, fast, home, copied} {
		if !listed(t, name) {
			t.Errorf("docker volume ls does not list %s", name)
		}
		want := name
		if name == copied {
			want = here
		}
		equal(t, "after all was wiped", once(t, name, "cat /data/file"), want)
	}
	v := inspect(t, fast)
	equal(t, "labels", fmt.Sprint(v.Status["labels"]), "map[team:blue]")
	equal(t, "description", v.Status["description"], any("on the fast disks"))
	contains(t, "mount options", once(t, fast, "grep ' /data ' /proc/mounts"), "commit=9")
	contains(t, "docker volume rm", dockerFails(t, "volume", "rm", here), "the volume is protected")
	bare(t, "image-meta", "set", "rbd/"+here, "docker_volume.protected", "false")
	for _, name := range []string{copied, here, fast, home} {
		docker(t, "volume", "rm", name)
	}
	empty := func() error {
		for _, place := range []string{pool, "rbd/" + space, "rbd"} { // the copy before its original
			for line := range strings.Lines(bare(t, "trash", "ls", place)) {
				if _, err := tryBare("trash", "rm", "--force", "--no-progress", place+"/"+strings.Fields(line)[0]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	wait(t, time.Minute, empty)
}

// A container sees the space two seconds after rbd resize, and the next one as well.
func TestGrowth(t *testing.T) {
	story(t)
	name := newVolume(t, "size=400M", "fstype=xfs")
	c := container(t, on(name))
	space := func() int {
		kib := 0
		if _, err := fmt.Sscan(in(t, c, "df -k /data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2"), &kib); err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	before := space()
	ceph(t, "rbd", "resize", "--no-progress", "--size=800M", name)
	bounded(t, 3*time.Second, "growth", func() { // docker exec takes its part
		wait(t, 10*time.Second, func() error {
			if now := space(); now < before+350 {
				return fmt.Errorf("the container sees %d MiB, %d before", now, before)
			}
			return nil
		})
	})
	docker(t, "rm", "-f", c)
	equal(t, "size", inspect(t, name).Status["size"], any("800MiB"))
	ceph(t, "rbd", "resize", "--no-progress", "--size=1200M", name)
	c = container(t, on(name))
	if now := space(); now < before+750 {
		t.Errorf("after a new mount it has %d MiB, %d before", now, before)
	}
}

// Data in an erasure-coded pool, for a user whose key reaches no further than a
// namespace: a cluster of its own, with three OSDs on disks.
func TestAnErasureCodedPoolAndAKeyOfOneNamespace(t *testing.T) {
	story(t)
	base, err := os.MkdirTemp("", "ec")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "c")
	conf := filepath.Join(dir, "ceph.conf")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := command(2*limit, name, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Cleanup(func() {
		run("../cluster.sh", "stop", dir)
		_ = os.RemoveAll(base)
	})
	run("env", "CLUSTER_OSDS=3", "../cluster.sh", "start", dir, "--bluestore")
	for _, args := range []string{
		"osd erasure-code-profile set ec21 k=2 m=1 crush-failure-domain=osd", "osd pool create ec 8 8 erasure ec21",
		"osd pool set ec allow_ec_overwrites true", "osd pool application enable ec rbd",
	} {
		run("ceph", append([]string{"-c", conf}, strings.Fields(args)...)...)
	}
	run("rbd", "-c", conf, "namespace", "create", "rbd/home")
	reach := func(pools string) {
		run("ceph", "-c", conf, "auth", "caps", "client.docker", "mon", "profile rbd", "osd", pools, "mgr", "profile rbd pool=rbd namespace=home")
	}
	reach("profile rbd pool=rbd namespace=home")
	reinstalled(t, "RBD_CONF_NAMESPACE=home", "ceph.source="+filepath.Join(dir, "etc-ceph"))

	out, err := try("volume", "create", "-d", "rbd", "-o", "data-pool=ec", unique(t))
	if err == nil {
		t.Fatalf("a data pool that the key does not reach: %s", out)
	}
	contains(t, "a data pool that the key does not reach", err.Error(), "may not use that pool")
	// librbd looks whether a data pool is one, outside of the namespace.
	reach("profile rbd pool=rbd namespace=home, profile rbd pool=ec")
	docker(t, "plugin", "disable", "-f", pluginName)
	docker(t, "plugin", "enable", "--timeout", "0", pluginName)
	name, twin := unique(t), unique(t)
	create(t, name, "size=64M", "data-pool=ec", "object-size=2M", "stripe-unit=1M", "stripe-count=2")
	equal(t, "written", once(t, name, "dd if=/dev/urandom of=/data/file bs=1M count=20 2>/dev/null; md5sum /data/file >/data/sum; echo done"), "done")
	create(t, twin, "from="+name, "data-pool=ec")
	for _, v := range []string{name, twin} {
		contains(t, "read from "+v, once(t, v, "md5sum -c /data/sum"), "/data/file: OK")
	}
	status := inspect(t, name).Status
	for key, want := range map[string]string{"namespace": "home", "data-pool": "ec", "object-size": "2MiB", "stripe-unit": "1MiB", "stripe-count": "2"} {
		equal(t, "status "+key, fmt.Sprint(status[key]), want)
	}
	if objects := run("rados", "-c", conf, "-p", "ec", "-N", "home", "ls"); !strings.Contains(objects, "rbd_data") {
		t.Errorf("objects in the erasure-coded pool: %q", objects)
	}
	if objects := run("rados", "-c", conf, "-p", "rbd", "--all", "ls"); strings.Contains(objects, "rbd_data") {
		t.Errorf("there is data in the other pool: %s", objects)
	}
	for _, v := range []string{twin, name} {
		docker(t, "volume", "rm", v)
	}
}
