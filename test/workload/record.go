package workload

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"unsafe"
)

// BlockSize is the size of a record. Record n lies at (n-1)*BlockSize.
const BlockSize = 4096

// WriterSize limits the name of a writer.
const WriterSize = 48

// A record: magic, sequence number, writer, payload, SHA-256 of all before it.
const (
	magic     = "rbd-log\n"
	seqAt     = len(magic)
	writerAt  = seqAt + 8
	payloadAt = writerAt + WriterSize
	sumAt     = BlockSize - sha256.Size
)

// Entry tells which record a block holds.
type Entry struct {
	Seq    uint64
	Writer string
}

// Run is a sequence of records of one writer.
type Run struct {
	Writer string `json:"writer"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

// Blocks returns memory for n blocks, aligned as O_DIRECT wants it.
func Blocks(n int) []byte {
	size := n * BlockSize
	mem := make([]byte, size+BlockSize)
	skip := -int(uintptr(unsafe.Pointer(&mem[0]))) & (BlockSize - 1)
	return mem[skip : skip+size : skip+size]
}

// Encode makes block the record of e.
func Encode(block []byte, e Entry) error {
	switch {
	case len(block) != BlockSize:
		return fmt.Errorf("a record has %d bytes, not %d", BlockSize, len(block))
	case e.Seq == 0:
		return errors.New("records count from 1")
	case e.Writer == "" || len(e.Writer) > WriterSize || bytes.IndexByte([]byte(e.Writer), 0) >= 0:
		return fmt.Errorf("writer %q: a name has 1 to %d bytes, none of them 0", e.Writer, WriterSize)
	}
	copy(block, magic)
	binary.LittleEndian.PutUint64(block[seqAt:], e.Seq)
	clear(block[writerAt:payloadAt])
	copy(block[writerAt:payloadAt], e.Writer)
	_, _ = rand.NewChaCha8(sha256.Sum256(block[:payloadAt])).Read(block[payloadAt:sumAt]) // never fails
	sum := sha256.Sum256(block[:sumAt])
	copy(block[sumAt:], sum[:])
	return nil
}

// Decode tells which record a block holds, or what is wrong with it.
func Decode(block []byte) (Entry, error) {
	if len(block) != BlockSize {
		return Entry{}, fmt.Errorf("%d bytes, not %d", len(block), BlockSize)
	}
	if string(block[:seqAt]) != magic {
		if len(bytes.Trim(block, "\x00")) == 0 {
			return Entry{}, errors.New("all zero")
		}
		return Entry{}, fmt.Errorf("begins with %q, not %q", block[:seqAt], magic)
	}
	if sum := sha256.Sum256(block[:sumAt]); !bytes.Equal(sum[:], block[sumAt:]) {
		return Entry{}, errors.New("its checksum does not fit")
	}
	return Entry{
		Seq:    binary.LittleEndian.Uint64(block[seqAt:]),
		Writer: string(bytes.TrimRight(block[writerAt:payloadAt], "\x00")),
	}, nil
}

// Scan reads a log. A writer may have died in the midst of its last append, so
// bad blocks at the very end are no error; tail says what is wrong with them.
func Scan(log io.ReaderAt, size int64) (entries []Entry, tail string, err error) {
	const chunk = 256
	var (
		blocks = uint64(size / BlockSize)
		buf    = Blocks(chunk)
		bad    error
		writer string
	)
	for n := range blocks {
		if n%chunk == 0 {
			want := buf[:min(chunk, blocks-n)*BlockSize]
			if got, err := log.ReadAt(want, int64(n)*BlockSize); got < len(want) {
				return entries, "", fmt.Errorf("read from record %d on: %w", n+1, err)
			}
		}
		at := n % chunk * BlockSize
		e, err := Decode(buf[at : at+BlockSize])
		switch {
		case err != nil && bad == nil:
			bad = fmt.Errorf("record %d: %w", n+1, err)
		case err != nil: // the tail goes on
		case e.Seq != n+1:
			return entries, "", fmt.Errorf("record %d of %s lies in the place of record %d", e.Seq, e.Writer, n+1)
		case bad != nil:
			return entries, "", fmt.Errorf("record %d of %s comes after a bad one: %w", e.Seq, e.Writer, bad)
		default:
			if e.Writer == writer {
				e.Writer = writer // one string for all
			}
			writer = e.Writer
			entries = append(entries, e)
		}
	}
	if rest := size % BlockSize; rest > 0 && bad == nil {
		bad = fmt.Errorf("record %d: %d bytes, not %d", blocks+1, rest, BlockSize)
	}
	if bad != nil {
		tail = bad.Error()
	}
	return entries, tail, nil
}

// Runs puts entries together.
func Runs(entries []Entry) (runs []Run) {
	for _, e := range entries {
		if n := len(runs); n > 0 && runs[n-1].Writer == e.Writer && runs[n-1].Last+1 == e.Seq {
			runs[n-1].Last = e.Seq
		} else {
			runs = append(runs, Run{Writer: e.Writer, First: e.Seq, Last: e.Seq})
		}
	}
	return runs
}
