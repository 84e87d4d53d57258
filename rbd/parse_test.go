package rbd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// monDump is an answer of ceph 16.2.15 to mon dump --format json, with a second
// monitor that speaks v1 only and a third on IPv6.
const monDump = `
{"epoch":1,"fsid":"bb4e41bc-95df-4e57-9d4d-36c3516b51ca","modified":"2026-11-22T18:05:42.969603Z","created":"2026-11-22T18:05:42.969603Z",` +
	`"min_mon_release":16,"min_mon_release_name":"pacific","election_strategy":1,"disallowed_leaders: ":"","stretch_mode":false,` +
	`"tiebreaker_mon":"","removed_ranks: ":"","features":{"persistent":["kraken","luminous","mimic","osdmap-prune","nautilus","octopus",` +
	`"pacific","elector-pinging"],"optional":[]},"mons":[` +
	`{"rank":0,"name":"a","public_addrs":{"addrvec":[{"type":"v2","addr":"127.0.0.1:23448","nonce":0},{"type":"v1","addr":"127.0.0.1:23449","nonce":0}]},` +
	`"addr":"127.0.0.1:23449/0","public_addr":"127.0.0.1:23449/0","priority":0,"weight":0,"crush_location":"{}"},` +
	`{"rank":1,"name":"b","public_addrs":{"addrvec":[{"type":"v1","addr":"10.0.0.2:6789","nonce":0}]},` +
	`"addr":"10.0.0.2:6789/0","public_addr":"10.0.0.2:6789/0","priority":0,"weight":0,"crush_location":"{}"},` +
	`{"rank":2,"name":"c","public_addrs":{"addrvec":[{"type":"v2","addr":"[fd00::3]:3300","nonce":0},{"type":"v1","addr":"[fd00::3]:6789","nonce":0}]},` +
	`"addr":"[fd00::3]:6789/0","public_addr":"[fd00::3]:6789/0","priority":0,"weight":0,"crush_location":"{}"}` +
	`],"quorum":[0,1,2]}
`

func TestParseMonitors(t *testing.T) {
	v1, v2, err := monitors([]byte(monDump))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"127.0.0.1:23449", "10.0.0.2:6789", "[fd00::3]:6789"}; !slices.Equal(v1, want) {
		t.Errorf("v1 %q, want %q", v1, want)
	}
	if want := []string{"127.0.0.1:23448", "[fd00::3]:3300"}; !slices.Equal(v2, want) {
		t.Errorf("v2 %q, want %q", v2, want)
	}
	if v1, v2, err := monitors([]byte(`{}`)); err != nil || v1 != nil || v2 != nil {
		t.Errorf("no monitors: %q %q %v", v1, v2, err)
	}
	for _, bad := range []string{"", "dumped monmap epoch 1\n" + monDump, monDump[:300]} {
		if _, _, err := monitors([]byte(bad)); err == nil || !strings.Contains(err.Error(), "mon dump") {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

func TestParseKeyrings(t *testing.T) {
	const docker, admin, other = "ZG9ja2Vy//8=", "YWRtaW4+//8=", "b3RoZXI/Pz8="
	dir := t.TempDir()
	keyring := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := keyring("plain", "[client.docker]\n\tkey = "+docker+"\n\tcaps mgr = \"profile rbd pool=rbd\"\n\tcaps mon = \"profile rbd\"\n")
	several := keyring("several", "[client.admin]\n\tkey = "+admin+"\n\tcaps mon = \"allow *\"\n[client.docker]\n\tkey = "+other+"\n"+
		"[client.docker2]\n\tkey = "+admin+"\n")
	tight := keyring("tight", "[client.docker]\nkey="+docker)
	windows := keyring("windows", "[client.docker]\r\n\tkey = "+docker+"\r\n")
	stranger := keyring("stranger", "[client.admin]\n\tkey = "+admin+"\n")
	capsOnly := keyring("caps", "[client.docker]\n\tcaps mon = \"profile rbd\"\n")
	comment := keyring("comment", "# key = "+admin+"\n[client.docker]\n\t# key = "+admin+"\n\tkey = "+docker+"\n")
	missing := filepath.Join(dir, "missing")
	for _, row := range []struct {
		name  string
		files []string
		want  string
	}{
		{"one", []string{plain}, docker},
		{"Ceph's four places, one of which exists", []string{missing, missing + "2", plain, missing + "3"}, docker},
		{"the first that has the key", []string{plain, several}, docker},
		{"the first that has the key, the other way round", []string{several, plain}, other},
		{"one without the user comes before", []string{stranger, plain}, docker},
		{"one without the key comes before", []string{capsOnly, plain}, docker},
		{"no blanks, no line feed at the end", []string{tight}, docker},
		{"line ends of Windows", []string{windows}, docker},
		{"comments", []string{comment}, docker},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := keyOf("client.docker", keyrings(row.files))
			if err != nil || got != row.want {
				t.Errorf("got %q, %v; want %q", got, err, row.want)
			}
		})
	}
	for _, files := range [][]string{nil, {missing}, {stranger}, {stranger, capsOnly}} {
		got, err := keyOf("client.docker", keyrings(files))
		if err == nil || !strings.Contains(err.Error(), "client.docker") || strings.Contains(err.Error(), admin) {
			t.Errorf("%q: got %q, %v", files, got, err)
		}
	}
}

// keyrings are options that name these files.
func keyrings(files []string) func(string) (string, error) {
	return func(option string) (string, error) {
		if option == "keyring" {
			return strings.Join(files, ","), nil
		}
		return "", nil
	}
}

// blocklist is an answer of ceph 16.2.15 to osd blocklist ls --format json:
// two lists, and ranges written with a port.
const blocklist = `
[{"addr":"[fd00::2]:0/0","until":"2026-11-22T19:05:54.485688+0000"},{"addr":"[fd00::1]:0/99","until":"2026-11-22T19:05:53.445260+0000"},` +
	`{"addr":"10.7.7.7:0/0","until":"2026-11-22T19:05:50.428911+0000"},{"addr":"10.1.2.3:0/123456","until":"2026-11-22T19:05:49.851974+0000"}]` +
	`[{"range":"10.9.9.0:0/24","until":"2026-11-22T19:05:51.445078+0000"},{"range":"[fd00:1::]:0/64","until":"2026-11-22T19:05:52.448181+0000"}]`

func TestParseBlocklist(t *testing.T) {
	list, err := entries([]byte(blocklist))
	if err != nil || len(list) != 6 {
		t.Fatalf("%d entries, %v: %v", len(list), err, list)
	}
	for addr, want := range map[string]bool{
		"10.1.2.3:0/123456":    true, // the client
		"10.1.2.3:0/123457":    false,
		"10.1.2.3:0/12345":     false,
		"10.1.2.33:0/123456":   false,
		"10.7.7.7:0/1":         true, // the whole host
		"10.7.7.8:0/1":         false,
		"10.9.9.1:0/1":         true, // the range
		"10.9.9.255:0/1913":    true,
		"10.9.10.1:0/1":        false,
		"[fd00::1]:0/99":       true,
		"[fd00::1]:0/98":       false,
		"[fd00::2]:0/4711":     true,
		"[fd00::22]:0/4711":    false,
		"[fd00:1::77]:0/4711":  true,
		"[fd00:1:0:1::7]:0/47": false,
		"":                     false,
		"client.4157":          false,
	} {
		barred := slices.ContainsFunc(list, func(e entry) bool { return e.bars(addr) })
		if barred != want {
			t.Errorf("%q barred: %v, want %v", addr, barred, want)
		}
	}
}

func TestParseBlocklistsOfOtherShapes(t *testing.T) {
	for text, want := range map[string]int{
		"":                                      0,
		"\n[][]":                                0,
		"\n[]":                                  0,
		"[]\n[]\n":                              0,
		blocklist[:1]:                           0,
		`[{"addr":"10.1.2.3:0/1","until":"x"}]`: 1, // before ranges there was one list
		`[{"addr":"10.1.2.3:0/1","until":"x"}][]`:                        1,
		`[][{"range":"10.9.9.0:0/24","until":"x"}]`:                      1,
		`[{"addr":"10.1.2.3:0/1","new":{"a":1}}][{"range":"::1:0/128"}]`: 2,
	} {
		if list, err := entries([]byte(text)); err != nil || len(list) != want {
			t.Errorf("%q: %d entries, %v; want %d", text, len(list), err, want)
		}
	}
	for _, bad := range []string{blocklist[:100], "listed 6 entries", `{"addr":"x"}`, blocklist + "["} {
		if list, err := entries([]byte(bad)); err == nil || !strings.Contains(err.Error(), "osd blocklist ls") {
			t.Errorf("%.40q: %d entries, %v", bad, len(list), err)
		}
	}
}

// coded is an error as go-ceph's are.
type coded int

func (c coded) Error() string  { return fmt.Sprintf("rbd: ret=%d", int(c)) }
func (c coded) ErrorCode() int { return int(c) }

func TestTranslateErrorNumbers(t *testing.T) {
	kinds := []error{
		backend.ErrNotFound, backend.ErrExists, backend.ErrInvalid, backend.ErrBusy, backend.ErrInUse, backend.ErrConflict, backend.ErrUnavailable, backend.ErrUnexpectedContent,
	}
	for _, row := range []struct {
		name string
		err  error
		kind error // nil = none
		gone bool
	}{
		{"ENOENT", coded(-2), backend.ErrNotFound, false},
		{"ENOENT, the other sign", coded(2), backend.ErrNotFound, false},
		{"go-ceph's own", rados.ErrNotFound, backend.ErrNotFound, false},
		{"go-ceph's own, wrapped", fmt.Errorf("pool: %w", rados.ErrNotFound), backend.ErrNotFound, false},
		{"EEXIST", coded(-int(syscall.EEXIST)), backend.ErrExists, false},
		{"EBUSY: it has watchers", coded(-int(syscall.EBUSY)), backend.ErrBusy, false},
		{"ENOTEMPTY: it has snapshots", coded(-int(syscall.ENOTEMPTY)), backend.ErrBusy, false},
		{"ERANGE: a buffer was too small", coded(-int(syscall.ERANGE)), nil, false}, // of a record: see the contract of Records
		{"EOVERFLOW", coded(-int(syscall.EOVERFLOW)), nil, false},
		{"ESTALE", coded(-int(syscall.ESTALE)), nil, false},
		{"EACCES", coded(-int(syscall.EACCES)), backend.ErrUnavailable, false},
		{"EPERM", coded(-int(syscall.EPERM)), backend.ErrUnavailable, false},
		{"ETIMEDOUT", coded(-int(syscall.ETIMEDOUT)), backend.ErrUnavailable, false},
		{"ESHUTDOWN: blocklisted", coded(-108), backend.ErrUnavailable, true},
		{"ENOTCONN: shut down", coded(-int(syscall.ENOTCONN)), backend.ErrUnavailable, true},
		{"EINTR", coded(-int(syscall.EINTR)), backend.ErrUnavailable, false},
		{"EIO", coded(-int(syscall.EIO)), nil, false},
		{"EROFS", coded(-int(syscall.EROFS)), nil, false},
		{"no number", errors.New("no key"), nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := translate("open image db1", row.err)
			for _, kind := range kinds {
				if is := errors.Is(err, kind); is != (kind == row.kind) { //nolint:errorlint // the very sentinel
					t.Errorf("is it %v? %v: %v", kind, is, err)
				}
			}
			if !errors.Is(err, row.err) {
				t.Errorf("the cause is lost: %v", err)
			}
			if !strings.HasPrefix(err.Error(), "open image db1: ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line that begins with the operation: %q", err)
			}
			if gone(row.err) != row.gone || gone(err) != row.gone {
				t.Errorf("gone: %v, translated %v, want %v", gone(row.err), gone(err), row.gone)
			}
		})
	}
	if err := translate("open", nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	if gone(nil) {
		t.Error("gone without an error")
	}
}

func TestParseHealth(t *testing.T) {
	for answer, want := range map[string]string{
		`{"status":"HEALTH_OK","checks":{},"mutes":[]}`: "HEALTH_OK",
		`{"status":"HEALTH_WARN","checks":{"PG_AVAILABILITY":{"severity":"HEALTH_WARN","summary":{"message":"Reduced data availability: 8 pgs inactive","count":8}},
			"OSD_DOWN":{"severity":"HEALTH_WARN","summary":{"message":"1 osds down","count":1}}}}`: "HEALTH_WARN: 1 osds down; Reduced data availability: 8 pgs inactive",
		`HEALTH_WARN 1 osds down`: "HEALTH_WARN 1 osds down",
	} {
		if got := health([]byte(answer)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// mgrDump is what matters of an answer of ceph 16.2.15 to mgr dump --format json.
const mgrDump = `{"epoch":4,"active_gid":4109,"active_name":"x","active_addrs":{"addrvec":[{"type":"v2","addr":"127.0.0.1:6804","nonce":7770},` +
	`{"type":"v1","addr":"127.0.0.1:6805","nonce":7770}]},"active_clients":[{"name":"devicehealth","addrvec":[{"type":"v2","addr":"127.0.0.1:0","nonce":2}]},` +
	`{"name":"rbd_support","addrvec":[{"type":"v2","addr":"127.0.0.1:0","nonce":2618439360}]}],"available":true}`

func TestManagers(t *testing.T) {
	if addrs, err := managers([]byte(mgrDump)); err != nil || !slices.Equal(addrs, []string{"127.0.0.1:0/2618439360"}) {
		t.Errorf("got %v, %v", addrs, err)
	}
	if addrs, err := managers([]byte(`{"available":true,"active_clients":[]}`)); err != nil || len(addrs) != 0 { // a new one, for a second
		t.Errorf("got %v, %v", addrs, err)
	}
	if _, err := managers([]byte("nonsense")); err == nil {
		t.Error("understood")
	}
}

// An image stays in the trash for its time by Ceph's clock, whatever that of the node is:
// librbd adds what it is told to the node's.
func TestTheTimeInTheTrashIsCephs(t *testing.T) {
	ceph := time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	end := ceph.Add(time.Hour)
	for name, node := range map[string]time.Time{
		"right": ceph.Add(20 * time.Millisecond), "a bit slow": ceph.Add(-time.Minute), "of 1970": time.Unix(3600, 0), "a bit fast": ceph.Add(time.Minute),
	} {
		if until := node.Add(between(node, end)); until.Sub(end).Abs() > time.Second {
			t.Errorf("%s: until %s", name, until)
		}
	}
	if fast := ceph.Add(24 * time.Hour); fast.Add(between(fast, end)).Before(end) {
		t.Error("a fast clock shortens it")
	}
}

// What Ceph answers is read to its end and no further.
func TestAnswersThatAreTooShort(t *testing.T) {
	for _, data := range [][]byte{nil, {5, 0, 0}, {5, 0, 0, 0, 'a'}, {255, 255, 255, 255}} {
		d := &decoder{rest: data}
		if text := d.text(); text != "" || d.err() == nil {
			t.Errorf("%v: %q, %v", data, text, d.err())
		}
	}
	d := &decoder{rest: []byte{2, 1, 6, 0, 0, 0, 1, 0, 0, 0, 'a', 'b', 'c'}}
	version, inner := d.versioned()
	if text := inner.text(); version != 2 || text != "a" || inner.err() != nil || string(d.rest) != "c" {
		t.Errorf("version %d, %q, rest %q, %v", version, text, d.rest, inner.err())
	}
}
