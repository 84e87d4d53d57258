package smoke

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// The table in docs has a line for each cell of the matrix, and no other.
func TestTheTableHasEachCell(t *testing.T) {
	t.Setenv("LIST", "1")
	list, err := tool.Run(time.Minute, "../matrix.sh")
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("../../docs/tested.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if cell := strings.Split(line, " | "); len(cell) == 6 && !strings.HasPrefix(line, "| slice ") {
			told[strings.TrimPrefix(cell[0], "| ")+": "+cell[1]] = true
		}
	}
	slice := ""
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		cell, is := strings.CutPrefix(line, "  ")
		if !is {
			slice = line
			continue
		}
		if key := slice + ": " + cell; !told[key] {
			t.Errorf("docs/tested.md does not tell of %s: make matrix SLICE=%s", key, slice)
		} else {
			delete(told, key)
		}
	}
	for key := range told {
		t.Errorf("docs/tested.md tells of %s, which is no cell", key)
	}
}
