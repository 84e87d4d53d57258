package backend_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

func TestNamesThatCanBeVolumes(t *testing.T) {
	for _, name := range []string{
		"db1", "a", "0", "A", "stack_db.data-1", "a..b", "a-", "a.", "a_", strings.Repeat("a", 96),
		"f1d2d2f924e986ac86fdf7b36c94bcdf32beec15a3a8f2b9c3a1d0a9e2a0b0c1", // an anonymous volume's
	} {
		if err := backend.CheckName(name); err != nil || !backend.ValidName(name) {
			t.Errorf("%q: ValidName %v, error %v", name, backend.ValidName(name), err)
		}
	}
}

func TestNamesRefused(t *testing.T) {
	const chars = `: allowed are letters, digits, '_', '.' and '-', and the first must be a letter or a digit`
	for _, row := range []struct{ name, value, want string }{
		{"empty", "", `invalid name: it is empty`},
		{"97 bytes", strings.Repeat("a", 97), `invalid name: it has 97 bytes, at most 96 are allowed`},
		{"48 letters of 3 bytes", strings.Repeat("語", 48), `invalid name: it has 144 bytes, at most 96 are allowed`},
		{"path", "../etc", `invalid name "../etc"` + chars},
		{"slash", "a/b", `invalid name "a/b"` + chars},
		{"dot", ".", `invalid name "."` + chars},
		{"dots", "..", `invalid name ".."` + chars},
		{"option", "-a", `invalid name "-a"` + chars},
		{"underscore first", "_a", `invalid name "_a"` + chars},
		{"snapshot", "a@b", `invalid name "a@b"` + chars},
		{"blank", "a b", `invalid name "a b"` + chars},
		{"comma", "a,b", `invalid name "a,b"` + chars},
		{"line feed inside", "a\nb", `invalid name "a\nb"` + chars},
		{"line feed at the end", "a\n", `invalid name "a\n"` + chars},
		{"zero byte", "a\x00", `invalid name "a\x00"` + chars},
		{"not UTF-8", "a\xff", `invalid name "a\xff"` + chars},
		{"letters of another alphabet", "größe", `invalid name "größe"` + chars},
	} {
		t.Run(row.name, func(t *testing.T) {
			backendtest.Invalid(t, backend.CheckName(row.value), row.want)
			if backend.ValidName(row.value) {
				t.Error("ValidName says otherwise")
			}
		})
	}
}

func FuzzName(f *testing.F) {
	for _, name := range []string{"db1", "", "..", "a/b", "a\n", "a\x00", "größe", strings.Repeat("a", 96), strings.Repeat("a", 97)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := backend.CheckName(name)
		if backend.ValidName(name) != (err == nil) {
			t.Fatalf("%q: ValidName %v, CheckName %v", name, backend.ValidName(name), err)
		}
		if err != nil {
			backendtest.OneInvalidLine(t, err)
			return
		}
		if len(name) == 0 || len(name) > 96 {
			t.Errorf("%q: accepted with %d bytes", name, len(name))
		}
		for i := range len(name) {
			c := name[i]
			alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
			if !alnum && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
				t.Errorf("%q: accepted with %q", name, c)
			}
		}
		if path := filepath.Join("/volumes", name); path != "/volumes/"+name || filepath.Dir(path) != "/volumes" {
			t.Errorf("%q: it would be mounted on %s", name, path)
		}
	})
}
