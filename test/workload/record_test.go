package workload

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

func record(tb testing.TB, seq uint64, writer string) []byte {
	tb.Helper()
	block := make([]byte, BlockSize)
	if err := Encode(block, Entry{seq, writer}); err != nil {
		tb.Fatal(err)
	}
	return block
}

func TestRecord(t *testing.T) {
	want := Entry{1 << 40, strings.Repeat("w", WriterSize)}
	block := record(t, want.Seq, want.Writer)
	if got, err := Decode(block); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	if !bytes.Equal(block, record(t, want.Seq, want.Writer)) {
		t.Error("not the same twice")
	}
	if other := record(t, 1, want.Writer); bytes.Equal(block[payloadAt:sumAt], other[payloadAt:sumAt]) {
		t.Error("two records have one payload")
	}
	for i := range block {
		block[i] ^= 1
		if got, err := Decode(block); err == nil {
			t.Fatalf("byte %d changed: %v", i, got)
		}
		block[i] ^= 1
	}
}

func TestDecodeTellsWhatIsWrong(t *testing.T) {
	torn := record(t, 1, "n1/a")
	clear(torn[BlockSize/2:])
	for want, block := range map[string][]byte{
		"all zero": make([]byte, BlockSize),
		"begins":   bytes.Repeat([]byte("x"), BlockSize),
		"checksum": torn,
		"3 bytes":  []byte("abc"),
	} {
		if _, err := Decode(block); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, e := range []Entry{{0, "w"}, {1, ""}, {1, "a\x00"}, {1, strings.Repeat("w", WriterSize+1)}} {
		if Encode(make([]byte, BlockSize), e) == nil {
			t.Errorf("accepts %v", e)
		}
	}
	if Encode(make([]byte, 10), Entry{1, "w"}) == nil {
		t.Error("accepts 10 bytes")
	}
}

func TestBlocks(t *testing.T) {
	for range 20 {
		b := Blocks(3)
		if len(b) != 3*BlockSize || cap(b) != len(b) || uintptr(unsafe.Pointer(&b[0]))%BlockSize != 0 {
			t.Fatalf("%d bytes at %p", len(b), &b[0])
		}
	}
}

func TestScan(t *testing.T) {
	r1, r2, r3 := record(t, 1, "n1/a"), record(t, 2, "n1/a"), record(t, 3, "n2/b")
	bad := bytes.Repeat([]byte("x"), BlockSize)
	zero := make([]byte, BlockSize)
	for name, c := range map[string]struct {
		log       [][]byte
		records   int
		tail, err string
	}{
		"empty":            {nil, 0, "", ""},
		"whole":            {[][]byte{r1, r2, r3}, 3, "", ""},
		"bad tail":         {[][]byte{r1, r2, bad}, 2, "record 3: begins", ""},
		"zero tail":        {[][]byte{r1, zero, zero}, 1, "record 2: all zero", ""},
		"short tail":       {[][]byte{r1, r2[:100]}, 1, "record 2: 100 bytes", ""},
		"bad, short tail":  {[][]byte{r1, bad, r2[:100]}, 1, "record 2: begins", ""},
		"bad only":         {[][]byte{bad}, 0, "record 1: begins", ""},
		"bad in the midst": {[][]byte{r1, bad, r3}, 1, "", "record 3 of n2/b comes after a bad one: record 2: begins"},
		"record missing":   {[][]byte{r1, r3}, 1, "", "record 3 of n2/b lies in the place of record 2"},
		"record repeated":  {[][]byte{r1, r2, r2}, 2, "", "record 2 of n1/a lies in the place of record 3"},
		"stale after bad":  {[][]byte{r1, bad, r1}, 1, "", "record 1 of n1/a lies in the place of record 3"},
	} {
		t.Run(name, func(t *testing.T) {
			log := bytes.Join(c.log, nil)
			entries, tail, err := Scan(bytes.NewReader(log), int64(len(log)))
			if len(entries) != c.records {
				t.Errorf("%d records, want %d", len(entries), c.records)
			}
			if !strings.HasPrefix(tail, c.tail) || (tail == "") != (c.tail == "") {
				t.Errorf("tail %q, want %q", tail, c.tail)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func TestScanOfMoreThanOneRead(t *testing.T) {
	var log []byte
	for seq := range uint64(600) {
		log = append(log, record(t, seq+1, []string{"n1/a", "n2/b", "n1/c"}[seq/200])...)
	}
	entries, tail, err := Scan(bytes.NewReader(log), int64(len(log)))
	if err != nil || tail != "" {
		t.Fatal(tail, err)
	}
	want := []Run{{"n1/a", 1, 200}, {"n2/b", 201, 400}, {"n1/c", 401, 600}}
	if runs := Runs(entries); !slices.Equal(runs, want) {
		t.Errorf("runs %v", runs)
	}
	if _, _, err := Scan(bytes.NewReader(log[:BlockSize]), int64(len(log))); !errors.Is(err, io.EOF) {
		t.Errorf("a log that is shorter than it should be: %v", err)
	}
}
