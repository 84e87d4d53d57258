package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The files of examples/ are what people start from, so each of them is deployed
// here as it is, but for what this machine has not: images and networks.
func TestExamples(t *testing.T) {
	story(t)
	swarm(t)
	passphrase := filepath.Join(cluster, "etc-ceph", "passphrases")
	must(t, os.Mkdir(passphrase, 0o700))
	t.Cleanup(func() { must(t, os.RemoveAll(passphrase)) })
	must(t, os.WriteFile(filepath.Join(passphrase, "default"), []byte("correct horse battery staple\n"), 0o400))
	secret := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	docker(t, "secret", "create", "password", secret)

	original(t)
	t.Cleanup(func() { undeploy(t) })
	deploy(t, "stack.yml", "db")
	deploy(t, "encrypted.yml", "vault")
	deploy(t, "readonly.yml", "web")
	db := tasks(t, "stack.yml", 1)[0]
	vault := tasks(t, "encrypted.yml", 1)[0]

	t.Run("a database with a volume of its size and owner", func(t *testing.T) {
		const at = "/var/lib/postgresql/data"
		equal(t, "owner and mode", in(t, db, "stat -c '%u %g %a' "+at), "999 999 700")
		equal(t, "GiB that it has", in(t, db, "df -P "+at+" | awk 'NR==2 { printf \"%.0f\", $2/1048576 }'"), "20")
		equal(t, "the secret", in(t, db, "cat /run/secrets/password"), "secret")
	})
	t.Run("an encrypted volume is LUKS in the pool and a filesystem in the container", func(t *testing.T) {
		in(t, vault, "echo plain >/data/file; sync")
		contains(t, "mount", in(t, vault, "grep ' /data ' /proc/mounts"), " /data ext4 rw")
		head, err := command(limit, "sh", "-c", `rbd -c "$0" export --no-progress rbd/vault-data - | head -c 6`, filepath.Join(cluster, "ceph.conf"))
		must(t, err)
		equal(t, "first bytes of the image", head, "LUKS\xba\xbe")
	})
	t.Run("a snapshot is read by all replicas and written by none", func(t *testing.T) {
		for _, web := range tasks(t, "readonly.yml", 2) {
			equal(t, "read", in(t, web, "cat /usr/share/nginx/html/index.html"), "v1")
			if _, err := try("exec", web, "touch", "/usr/share/nginx/html/file"); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
				t.Errorf("a replica that writes: %v", err)
			}
		}
		equal(t, "the original", once(t, "site", "cat /data/index.html"), "v2")
	})
	t.Run("a database as it was beside that of now", func(t *testing.T) {
		const file = "/var/lib/postgresql/data/file"
		in(t, db, "echo then >"+file)
		snapshot(t, "Create", "db-data", "nightly-2026-11-25")
		in(t, db, "echo now >"+file)
		deploy(t, "restore.yml", "db")
		restored := tasks(t, "restore.yml", 1)[0]
		equal(t, "restored", in(t, restored, "cat "+file+"; stat -c '%u %g %a' "+filepath.Dir(file)), "then\n999 999 700")
		in(t, restored, "echo another >"+file)
		equal(t, "the original", in(t, db, "cat "+file), "now")
		snapshot(t, "Remove", "db-data", "nightly-2026-11-25")
		equal(t, "restored, without the snapshot", in(t, restored, "cat "+file), "another")
	})
	t.Run("each night the volumes of the node get a snapshot and lose old ones", func(t *testing.T) { nightly(t, db) })
}

// nightly runs snapshot.sh where three volumes are mounted, of which two have old snapshots.
func nightly(t *testing.T, db string) {
	today := time.Now().Format("nightly-2006-01-02")
	lastKept := time.Now().AddDate(0, 0, -14).Format("nightly-2006-01-02")
	tooOld := time.Now().AddDate(0, 0, -15).Format("nightly-2006-01-02")
	for _, snap := range []string{"nightly-2020-01-01", tooOld, lastKept, "manual-2020-01-01"} {
		snapshot(t, "Create", "db-data", snap)
	}
	snapshot(t, "Create", "vault-data", "nightly-2020-01-01")
	ceph(t, "rbd", "snap", "protect", "vault-data@nightly-2020-01-01")
	t.Cleanup(func() { // snapshots keep a volume from being removed
		_, _ = onCluster("rbd", "snap", "unprotect", "vault-data@nightly-2020-01-01") // if the story has not come so far
		for _, volume := range []string{"db-data", "db-data-restored", "vault-data"} {
			for _, snap := range snapshots(t, volume) {
				snapshot(t, "Remove", volume, snap)
			}
		}
	})
	in(t, db, "echo not synced >/var/lib/postgresql/data/file")

	script := func(args ...string) (string, error) {
		return command(limit, filepath.Join("..", "..", "examples", "snapshot.sh"), args...)
	}
	said, err := script("-v")
	equal(t, "what it did", said, strings.Join([]string{
		"db-data: made " + today, "db-data: removed nightly-2020-01-01", "db-data: removed " + tooOld,
		"db-data-restored: made " + today, "vault-data: made " + today}, "\n"))
	// One of an image's snapshots is protected: that is one line and the exit code, and no hindrance.
	if err == nil {
		t.Fatal("no error for a snapshot that cannot be removed")
	}
	contains(t, "what failed", err.Error(), "exit status 1: snapshot.sh: remove a snapshot of ", "rbd snap unprotect rbd/vault-data@nightly-2020-01-01")
	equal(t, "lines about what failed", strings.Count(err.Error(), "\n"), 0)
	equal(t, "snapshots", fmt.Sprint(snapshots(t, "db-data")), fmt.Sprint([]string{lastKept, "manual-2020-01-01", today}))
	frozen := newVolume(t, "snapshot=db-data@"+today)
	equal(t, "in the snapshot", once(t, frozen, "cat /data/file"), "not synced")

	ceph(t, "rbd", "snap", "unprotect", "vault-data@nightly-2020-01-01")
	said, err = script()
	must(t, err)
	equal(t, "a second time, as cron does it", said, "")
	equal(t, "snapshots after the second time", fmt.Sprint(snapshots(t, "vault-data")), fmt.Sprint([]string{today}))
}

// What the README shows is the example, with some lines left out.
func TestExamplesInTheREADME(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	must(t, err)
	readme := string(text)
	text, err = os.ReadFile(filepath.Join("..", "..", "examples", "stack.yml"))
	must(t, err)
	_, block, _ := strings.Cut(readme, "```yaml\n")
	block, _, _ = strings.Cut(block, "```")
	plain := func(line string) string {
		line, _, _ = strings.Cut(line, " #")
		return strings.TrimRight(line, "\n")
	}
	lines := strings.Split(string(text), "\n")
	for line := range strings.Lines(block) {
		i := slices.IndexFunc(lines, func(l string) bool { return plain(l) == plain(line) })
		if i < 0 {
			t.Fatalf("examples/stack.yml has not, or not in this place: %q", line)
		}
		lines = lines[i+1:]
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", "*"))
	must(t, err)
	for _, file := range files {
		contains(t, "README.md", readme, "(examples/"+filepath.Base(file)+")")
	}
}

// swarm makes the engine a swarm of one node, at a port of its own: the machine
// may be in another one.
func swarm(t *testing.T) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, free.Close())
	docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", free.Addr().String())
	t.Cleanup(func() {
		docker(t, "swarm", "leave", "--force")
		docker(t, "network", "rm", "docker_gwbridge") // a bridge on the machine, which Docker keeps
	})
}

// deploy makes a stack of an example.
func deploy(t *testing.T, example, service string) {
	t.Helper()
	// By its digest the swarm does not look for the image in a registry. The network is the host's: this engine makes none.
	override := fmt.Sprintf(`version: "3.8"
services:
  %s:
    image: %q
    command: [sh, -c, "trap exit TERM; sleep 1d & wait"]
networks:
  default: {external: true, name: host}
`, service, docker(t, "image", "inspect", "-f", "{{.Id}}", image))
	file := filepath.Join(t.TempDir(), "override.yml")
	must(t, os.WriteFile(file, []byte(override), 0o600))
	docker(t, "stack", "deploy", "--resolve-image", "never", "-c", filepath.Join("..", "..", "examples", example), "-c", file, stackOf(example))
}

// undeploy removes the stacks, all at a time, and then their volumes, copies first.
func undeploy(t *testing.T) {
	t.Helper()
	examples := []string{"restore.yml", "stack.yml", "encrypted.yml", "readonly.yml"}
	args := []string{"stack", "rm"}
	for _, example := range examples {
		args = append(args, stackOf(example))
	}
	docker(t, args...)
	for i, volume := range []string{"db-data-restored", "db-data", "vault-data", "site-v1"} {
		example := examples[i]
		wait(t, 20*time.Second, func() error {
			if ids := docker(t, "ps", "-aq", "--filter", "label=com.docker.stack.namespace="+stackOf(example)); ids != "" {
				return fmt.Errorf("containers of %s are still there: %s", example, ids)
			}
			return nil
		})
		removed(t, volume)
	}
}

func stackOf(example string) string { return prefix + "-" + strings.TrimSuffix(example, ".yml") }

// tasks waits until so many tasks of an example run, and returns their containers.
func tasks(t *testing.T, example string, count int) (containers []string) {
	t.Helper()
	stack := stackOf(example)
	wait(t, 30*time.Second, func() error {
		containers = strings.Fields(docker(t, "ps", "-q", "--filter", "label=com.docker.stack.namespace="+stack))
		if len(containers) != count {
			return fmt.Errorf("%d tasks of %s run, not %d: %s", len(containers), stack, count,
				docker(t, "stack", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", stack))
		}
		return nil
	})
	return containers
}

// removed removes a volume of an example, which must then be gone altogether.
func removed(t *testing.T, name string) {
	t.Helper()
	if slices.Contains(images(t), name) {
		id, _ := inspect(t, name).Status["id"].(string)
		docker(t, "volume", "rm", name)
		wait(t, 10*time.Second, func() error { return gone(t, name, id) })
		// An image whose copy is still being deleted stays for an hour, until the plugin looks again.
		wait(t, 30*time.Second, func() error {
			if trash := ceph(t, "rbd", "trash", "ls", "--all"); strings.Contains(trash, id) {
				return fmt.Errorf("data of %s is still there: %s", name, trash)
			}
			return nil
		})
	}
}

// original makes what readonly.yml shows: a volume with a snapshot, and newer content.
func original(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		for _, snap := range snapshots(t, "site") {
			snapshot(t, "Remove", "site", snap)
		}
		removed(t, "site")
	})
	create(t, "site", "size=1G")
	once(t, "site", "echo v1 >/data/index.html")
	snapshot(t, "Create", "site", "v1")
	once(t, "site", "echo v2 >/data/index.html")
}

// snapshot asks the plugin's socket to Create or to Remove one.
func snapshot(t *testing.T, what, volume, name string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"volume": volume, "snapshot": name})
	must(t, err)
	answer, err := ask(limit, "Snapshot."+what, bytes.NewReader(body))
	if err != nil || strings.Contains(answer, `"Err"`) {
		t.Fatalf("Snapshot.%s %s: %v, %s", what, body, err, answer)
	}
}

// snapshots lists those of a volume, the oldest first.
func snapshots(t *testing.T, volume string) (names []string) {
	t.Helper()
	answer, err := ask(limit, "Snapshot.List", strings.NewReader(`{"volume": "`+volume+`"}`))
	must(t, err)
	var list struct{ Snapshots []struct{ Snapshot string } }
	if err := json.Unmarshal([]byte(answer), &list); err != nil || strings.Contains(answer, `"Err"`) {
		t.Fatalf("Snapshot.List %s: %v, %s", volume, err, answer)
	}
	for _, s := range list.Snapshots {
		names = append(names, s.Snapshot)
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
