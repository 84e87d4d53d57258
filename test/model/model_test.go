package model

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const model = "../../driver/guard/guard.pml"

// bounds make the model finite. Clients (of each node) follow from the others:
// spin says so when they are too few.
type bounds struct{ nodes, faults, rounds, clients, orders, strangers int }

// What spin goes through, whole. The larger ones are for MODEL=long.
var (
	short = []bounds{{2, 2, 1, 7, 0, 0}, {2, 1, 1, 6, 1, 1}, {3, 1, 1, 5, 0, 0}}
	long  = []bounds{{2, 2, 2, 8, 0, 0}, {2, 1, 2, 8, 1, 1}, {2, 3, 1, 9, 0, 0}}
)

// Where a check needs other bounds than these to be missed.
var (
	usual   = bounds{2, 2, 1, 8, 0, 0}
	special = map[string]bounds{
		"CHECK_ADDRESS":     {3, 1, 1, 6, 0, 0}, // the third is the clone
		"CHECK_CONTAINS":    {2, 1, 2, 7, 0, 0},
		"CHECK_RELEASE":     {2, 1, 2, 7, 0, 0},
		"CHECK_ORDER":       {2, 1, 1, 7, 1, 0},
		"CHECK_ORDER_FENCE": {2, 1, 1, 7, 1, 0},
		"CHECK_WATCHERS":    {2, 1, 1, 6, 0, 1},
	}
)

func TestTheGuardHolds(t *testing.T) {
	all := short
	if os.Getenv("MODEL") == "long" {
		all = append(slices.Clone(short), long...)
	}
	for _, b := range all {
		t.Run(fmt.Sprintf("%+v", b), func(t *testing.T) {
			found, summary := spin(t, b, "", "-DCOLLAPSE")
			if found != "" {
				t.Errorf("%s\n%s", found, summary)
			}
			t.Log(summary)
		})
	}
}

// Without any one of its checks the protocol goes wrong, so none is there in
// vain, and spin would notice.
func TestEachCheckIsNeeded(t *testing.T) {
	for _, check := range checks(t) {
		t.Run(check, func(t *testing.T) {
			b, ok := special[check]
			if !ok {
				b = usual
			}
			found, summary := spin(t, b, check, "-DBFS") // breadth first: the shortest way to it
			if found == "" || strings.Contains(found, "clients") {
				t.Errorf("nothing goes wrong without it: %s\n%s", found, summary)
			}
			t.Logf("without it: %s", found)
		})
	}
}

// The steps of the model bear the names of the functions that make them.
func TestTheModelNamesTheCode(t *testing.T) {
	declared := map[string]bool{}
	var files []string
	for _, dir := range []string{"guard", "backend", "."} { // the last for what a node does with what it has
		these, err := filepath.Glob(filepath.Join("../../driver", dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, these...)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				declared[n.Name.Name] = true
			case *ast.InterfaceType:
				for _, method := range n.Methods.List {
					for _, name := range method.Names {
						declared[name.Name] = true
					}
				}
			}
			return true
		})
	}
	named := regexp.MustCompile(`\[([a-zA-Z]{4,})\]`).FindAllStringSubmatch(text(t), -1)
	if len(named) < 20 {
		t.Errorf("the model names %d functions only", len(named))
	}
	for _, match := range named {
		if name := match[1]; !declared[name] && name != "brackets" && !slices.Contains(arrays, name) {
			t.Errorf("neither driver/guard nor driver has a function %s", name)
		}
	}
}

// arrays and what they are indexed with look the same as names of functions.
var arrays = []string{"NODES", "CLIENTS", "prev", "sawAddr", "fencedAddr"}

func text(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func checks(t *testing.T) []string {
	t.Helper()
	all := regexp.MustCompile(`\bCHECK_[A-Z_]*[A-Z]\b`).FindAllString(text(t), -1)
	slices.Sort(all)
	return slices.Compact(all)
}

// spin goes through the model, without one of its checks if that is named. It
// returns what went wrong first, in words.
func spin(t *testing.T, b bounds, without, mode string) (found, summary string) {
	t.Helper()
	file, err := filepath.Abs(model)
	if err != nil {
		t.Fatal(err)
	}
	defines := []string{
		fmt.Sprintf("-DNODES=%d", b.nodes), fmt.Sprintf("-DFAULTS=%d", b.faults), fmt.Sprintf("-DROUNDS=%d", b.rounds),
		fmt.Sprintf("-DPER=%d", b.clients), fmt.Sprintf("-DORDERS=%d", b.orders), fmt.Sprintf("-DSTRANGERS=%d", b.strangers),
	}
	for _, check := range checks(t) {
		value := 1
		if check == without {
			value = 0
		}
		defines = append(defines, fmt.Sprintf("-D%s=%d", check, value))
	}
	dir := t.TempDir()
	run(t, dir, "spin", append(defines, "-a", file)...)
	run(t, dir, "gcc", "-O2", "-w", "-DSAFETY", "-DMEMLIM=6000", "-DVECTORSZ=2048", mode, "-o", "pan", "pan.c")
	out := run(t, dir, "./pan", "-m1000000")
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "pan:1:") {
			found = words(line)
		}
		if strings.Contains(line, "states, stored") || strings.HasPrefix(line, "State-vector") {
			summary += line + "; "
		}
		if strings.Contains(line, "Search not completed") && found == "" {
			t.Fatalf("spin did not come to an end:\n%s", out)
		}
	}
	if summary == "" {
		t.Fatalf("spin says nothing of states:\n%s", out)
	}
	return found, summary
}

// words translates what pan says.
func words(line string) string {
	for part, meaning := range map[string]string{
		"invalid end state": "a node is stuck for ever",
		"used":              "two can write",
		"met&&machine":      "mounted while a virtual machine writes",
		"missed":            "a holder is fenced that Ceph has not missed",
	} {
		if strings.Contains(line, part) {
			return meaning
		}
	}
	return line
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
