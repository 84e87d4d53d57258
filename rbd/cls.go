package rbd

import (
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
)

// The objects in which librbd keeps what makes an image, beside its data. Their content
// is that of the class rbd of the OSDs (cls_rbd), which librbd asks, as we do here where
// it has no call for what we want to know.
const (
	directory = "rbd_directory"
	trashList = "rbd_trash"
)

func idObject(name string) string   { return "rbd_id." + name }
func headerObject(id string) string { return "rbd_header." + id }
func objectMap(id string) string    { return "rbd_object_map." + id }

// ask calls a method that only reads.
func ask(ioctx *rados.IOContext, object, method string, in []byte) (*decoder, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	answer := op.Exec("rbd", method, in)
	if err := op.Operate(ioctx, object, rados.OperationNoFlag); err != nil {
		return nil, err
	}
	data, err := answer.Bytes()
	return &decoder{rest: data}, err
}

// askText calls one whose answer is a text; "" if what it was asked for is not there.
func askText(ioctx *rados.IOContext, object, method, of string) (string, error) {
	d, err := ask(ioctx, object, method, text(of))
	if errno(err) == syscall.ENOENT {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	answer := d.text()
	return answer, d.err()
}

// tell calls a method that changes an object, which must be there.
func tell(ioctx *rados.IOContext, object, method string, in []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.Exec("rbd", method, in)
	return op.Operate(ioctx, object, rados.OperationNoFlag)
}

// text is a text as Ceph encodes it, behind its length.
func text(s string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func texts(all ...string) (data []byte) {
	for _, s := range all {
		data = append(data, text(s)...)
	}
	return data
}

// decoder reads what Ceph has encoded. What is too short reads as zero, and is an error
// in the end.
type decoder struct {
	rest  []byte
	short bool
}

var errShort = errors.New("an answer of the class rbd is too short")

func (d *decoder) err() error {
	if d.short {
		return errShort
	}
	return nil
}

func (d *decoder) take(n uint32) []byte {
	if d.short || uint64(n) > uint64(len(d.rest)) {
		d.short = true
		return nil
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) number(size uint32) (n uint64) {
	for i, b := range d.take(size) {
		n |= uint64(b) << (8 * i)
	}
	return n
}

func (d *decoder) text() string { return string(d.take(uint32(d.number(4)))) }

func (d *decoder) time() time.Time {
	seconds := d.number(4)
	return time.Unix(int64(seconds), int64(d.number(4)))
}

// versioned reads what comes with its version and length; of a newer version more than
// is known here, which is skipped.
func (d *decoder) versioned() (version uint64, inner *decoder) {
	version = d.number(1)
	d.number(1)
	inner = &decoder{rest: d.take(uint32(d.number(4)))}
	inner.short = d.short
	return version, inner
}

// The states of what is in the trash.
const (
	inTrash   = 0
	moving    = 1 // on its way there
	removing  = 2 // its data is being deleted
	restoring = 3 // on its way back
)

// stay is how, and for how long, an image is in the trash; one that is put there again has
// another one.
type stay struct {
	state        uint64
	since, until int64 // in seconds since 1970, as librbd tells them
}

// trashStay finds an image in the trash; found is false if it is not there.
func trashStay(ioctx *rados.IOContext, id string) (s stay, found bool, err error) {
	d, err := ask(ioctx, trashList, "trash_get", text(id))
	if errno(err) == syscall.ENOENT {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	version, entry := d.versioned()
	entry.number(1) // who put it there
	entry.text()
	s.since, s.until = entry.time().Unix(), entry.time().Unix()
	if version > 1 {
		s.state = entry.number(1)
	}
	return s, true, entry.err()
}

// trashState is the state of trashStay.
func trashState(ioctx *rados.IOContext, id string) (state uint64, found bool, err error) {
	s, found, err := trashStay(ioctx, id)
	return s.state, found, err
}

// setTrashState changes it, if it is what it was.
func setTrashState(ioctx *rados.IOContext, id string, from, to byte) error {
	return tell(ioctx, trashList, "trash_state_set", append(text(id), to, from))
}

// clock is an object on which the OSD writes its time.
const clock = prefix + "clock"

// cephNow is the time by Ceph's clock: a node's may be years wrong. A full cluster has no
// space for another object, and most needs to have its trash emptied: then this node's has to do.
func cephNow(ioctx *rados.IOContext) (time.Time, error) {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	op.Exec("rbd", "set_modify_timestamp", nil)
	if err := op.Operate(ioctx, clock, rados.OperationNoFlag); errno(err) == syscall.ENOSPC || errno(err) == syscall.EDQUOT {
		return time.Now(), nil
	} else if err != nil {
		return time.Time{}, err
	}
	d, err := ask(ioctx, clock, "get_modify_timestamp", nil)
	if err != nil {
		return time.Time{}, err
	}
	now := d.time()
	return now, d.err()
}
