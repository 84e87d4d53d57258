package rootfs

import (
	"bytes"
	"crypto/md5"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// arches are what the plugin is built for.
var arches = map[string]struct {
	machine elf.Machine
	triplet string // in the names of directories
}{
	"amd64": {elf.EM_X86_64, "x86_64-linux-gnu"},
	"arm64": {elf.EM_AARCH64, "aarch64-linux-gnu"},
}

// ours are the files of no package.
var ours = regexp.MustCompile(`^(usr/bin/docker-volume-rbd|etc/(passwd|group|nsswitch\.conf)|var/lib/dpkg/status\.d/.*|usr/share/doc/[^/]*/copyright|usr/share/doc/docker-volume-rbd/.*)$`)

func TestRootFilesystem(t *testing.T) {
	dir, plugins := t.TempDir(), map[string]string{}
	for _, arch := range slices.Sorted(maps.Keys(arches)) {
		a := arches[arch]
		t.Run(arch, func(t *testing.T) {
			t.Setenv("ARCH", arch)
			plugins[arch] = filepath.Join(dir, arch)
			root, digest := build(t, plugins[arch])
			files := regular(t, root)
			t.Run("made again it is the same", func(t *testing.T) {
				if _, again := build(t, t.TempDir()); again != digest {
					t.Errorf("%s, and then %s", digest, again)
				}
			})
			t.Run("each file is of a package, whose version and licence are there", func(t *testing.T) {
				packages(t, root, files)
			})
			t.Run("the licence of what is linked into the program is there", func(t *testing.T) { licences(t, root) })
			t.Run("what each program and library needs is there", func(t *testing.T) {
				for _, file := range files {
					needs(t, root, file, a.machine, a.triplet)
				}
			})
		})
	}
	t.Run("a registry has both, each node installs its own", func(t *testing.T) { push(t, plugins) })
}

// build makes the plugin in a directory, and returns its root filesystem and what a tar of all would be.
func build(t *testing.T, dir string) (root, digest string) {
	t.Helper()
	out, err := tool.Run(10*time.Minute, filepath.Join("..", "..", "cmd", "plugin.sh"), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	digest, err = tool.Run(time.Minute, "sh", "-c", `tar -C "$1" --sort=name -c rootfs | sha256sum`, "sh", dir)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "rootfs"), digest
}

// regular lists the files that are no directories and no links. A link must lead
// to something: to one of them, or to what is mounted there.
func regular(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case entry.Type().IsRegular():
			files = append(files, name)
		case entry.Type() == fs.ModeSymlink && name != "usr/lib/modules":
			_, err = os.Stat(path)
		case !entry.IsDir() && name != "usr/lib/modules":
			err = fmt.Errorf("%s is a %s", name, entry.Type())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// packages wants of each file that a package's list has it, as it is, and of each
// package its stanza and its copyright.
func packages(t *testing.T, root string, files []string) {
	t.Helper()
	sums := map[string]string{} // of the files of all packages
	for _, file := range files {
		name, is := strings.CutSuffix(file, ".md5sums")
		if !is {
			continue
		}
		for line := range strings.Lines(read(t, root, file)) {
			sum, path, _ := strings.Cut(strings.TrimSpace(line), "  ")
			sums[path] = sum
		}
		name = filepath.Base(name)
		stanza := read(t, root, filepath.Join("var/lib/dpkg/status.d", name))
		for _, field := range []string{"Package: " + name, "Version: ", "Architecture: ", "Status: install ok installed"} {
			if !strings.Contains("\n"+stanza, "\n"+field) {
				t.Errorf("%s: its stanza has no %q:\n%s", name, field, stanza)
			}
		}
		if !strings.Contains(strings.ToLower(read(t, root, filepath.Join("usr/share/doc", name, "copyright"))), "copyright") {
			t.Errorf("%s: its copyright has no copyright in it", name)
		}
	}
	for _, file := range files {
		sum := md5.Sum([]byte(read(t, root, file)))
		switch want, is := sums[file]; {
		case !is && !ours.MatchString(file):
			t.Errorf("%s is of no package", file)
		case is && want != hex.EncodeToString(sum[:]):
			t.Errorf("%s is not that of its package", file)
		}
	}
	if !strings.Contains(read(t, root, "etc/os-release"), "ID=debian\n") {
		t.Error("etc/os-release is not Debian's")
	}
}

// licences wants that of the program, of Go, and of each module in the program, as the
// program itself tells.
func licences(t *testing.T, root string) {
	t.Helper()
	program, err := buildinfo.ReadFile(filepath.Join(root, "usr/bin/docker-volume-rbd"))
	if err != nil {
		t.Fatal(err)
	}
	of := []string{"", "go"}
	for _, module := range program.Deps {
		of = append(of, module.Path)
	}
	if len(of) < 10 {
		t.Errorf("the program tells of %v only", of)
	}
	for _, path := range of {
		found, err := filepath.Glob(filepath.Join(root, "usr/share/doc/docker-volume-rbd", path, "*LICENSE*"))
		if err != nil || len(found) == 0 {
			t.Errorf("no licence of %q: %v", path, err)
		}
	}
}

func read(t *testing.T, root, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// needs looks at one file. If it is for a machine, it is for this one, and the
// loader finds what it is linked with, without a cache.
func needs(t *testing.T, root, file string, machine elf.Machine, triplet string) {
	t.Helper()
	content := []byte(read(t, root, file))
	if !bytes.HasPrefix(content, []byte(elf.ELFMAG)) {
		return
	}
	e, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if e.Machine != machine {
		t.Errorf("%s is for %v", file, e.Machine)
	}
	loader := regexp.MustCompile(`^lib(64)?/ld-linux-[a-z0-9-]*\.so\.\d$`)
	dirs := []string{"lib/" + triplet, "usr/lib/" + triplet}
	if p := slices.IndexFunc(e.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }); p >= 0 {
		interp, _, _ := strings.Cut(string(content[e.Progs[p].Off:][:e.Progs[p].Filesz]), "\x00")
		interp = strings.TrimPrefix(interp, "/")
		text := read(t, root, interp)
		if !loader.MatchString(interp) {
			t.Errorf("%s is loaded by %s", file, interp)
		}
		for _, dir := range dirs { // ld.so of Debian looks there by itself
			if !strings.Contains(text, "/"+dir+"/\x00") {
				t.Errorf("%s does not look for libraries in /%s by itself", interp, dir)
			}
		}
	}
	libraries, err := e.ImportedLibraries()
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	runpath, err := e.DynString(elf.DT_RUNPATH)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for _, path := range runpath {
		dirs = append(strings.Split(path, ":"), dirs...)
	}
	there := func(library string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool {
			_, err := os.Stat(filepath.Join(root, dir, library))
			return err == nil
		})
	}
	for _, library := range libraries {
		if !there(library) && !strings.HasPrefix(library, "ld-linux-") {
			t.Errorf("%s needs %s, which is in none of %v", file, library, dirs)
		}
	}
	for _, o := range opens(t, file, e) {
		if o.Priority != "suggested" && !slices.ContainsFunc(o.Soname, there) {
			t.Errorf("%s opens %v for %q (%s), which is not there", file, o.Soname, o.Feature, o.Priority)
		}
	}
}

// opened is an entry of .note.dlopen: a program is not linked with the library, and
// opens it when it needs it. See systemd's ELF_DLOPEN_METADATA. Suggested is what it does
// well without: libudev opens libidn2 for the names of hosts.
type opened struct {
	Feature, Priority string
	Soname            []string
}

func opens(t *testing.T, file string, e *elf.File) (all []opened) {
	t.Helper()
	section := e.Section(".note.dlopen")
	if section == nil {
		return nil
	}
	notes, err := section.Data()
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for aligned := func(n uint32) uint32 { return (n + 3) &^ 3 }; len(notes) > 12; {
		order := e.ByteOrder
		name, desc := aligned(order.Uint32(notes)), order.Uint32(notes[4:])
		var some []opened
		if err := json.Unmarshal(bytes.TrimRight(notes[12+name:][:desc], "\x00"), &some); err != nil {
			t.Fatalf("%s: .note.dlopen: %v", file, err)
		}
		all = append(all, some...)
		notes = notes[min(uint32(len(notes)), 12+name+aligned(desc)):]
	}
	return all
}
