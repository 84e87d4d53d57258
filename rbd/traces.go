package rbd

import (
	"cmp"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// traces are what the pool has of an image that librbd does not find under its name.
// Seen with 16.2, it makes one object after the other, and none of this is atomic:
//
//	create   both entries of rbd_directory, rbd_id.NAME, rbd_header.ID, rbd_object_map.ID;
//	         a clone then gets its parent, and the parent's header the clone (child_attach)
//	trash    an entry "moving" in rbd_trash; then rbd_id.NAME and both of rbd_directory go
//	restore  the entry becomes "restoring"; rbd_id.NAME, rbd_directory; then the entry goes
//	delete   the entry becomes "removing"; the data, child_detach, rbd_header.ID go, then the entry
//
// So with the header the image is whole, whatever else is missing, and is never deleted.
type traces struct {
	name   string
	held   string // the id that rbd_id.NAME holds
	listed string // the id that rbd_directory has under the name
	id     string // one of them
	back   string // the name that rbd_directory has under the id
	header bool

	trashed bool
	state   uint64 // in the trash
}

// errChanging: somebody is just at it.
var errChanging = fmt.Errorf("%w: the image is just being made or removed; try again", backend.ErrInUse)

// look finds the traces of a name. If there are none, id is "".
func look(ioctx *rados.IOContext, name string) (t traces, err error) {
	t.name = name
	if t.held, err = heldID(ioctx, name); err != nil {
		return t, err
	}
	if t.listed, err = askText(ioctx, directory, "dir_get_id", name); err != nil {
		return t, err
	}
	if t.id = t.listed; t.id == "" {
		t.id = t.held
	}
	if t.id == "" {
		return t, nil
	}
	if t.back, err = askText(ioctx, directory, "dir_get_name", t.id); err != nil {
		return t, err
	}
	if t.header, err = exists(ioctx, headerObject(t.id)); err != nil {
		return t, err
	}
	t.state, t.trashed, err = trashState(ioctx, t.id)
	return t, err
}

// heldID reads the object under the name, which has the id behind its length; "" if it
// is not there, or has none.
func heldID(ioctx *rados.IOContext, name string) (string, error) {
	data := make([]byte, 256)
	n, err := ioctx.Read(idObject(name), data, 0)
	if errno(err) == syscall.ENOENT || err == nil && n == 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	d := &decoder{rest: data[:n]}
	id := d.text()
	return id, d.err()
}

func exists(ioctx *rados.IOContext, object string) (bool, error) {
	_, err := ioctx.Stat(object)
	if errno(err) == syscall.ENOENT {
		return false, nil
	}
	return err == nil, err
}

// steady looks again, until nobody changes the traces any more.
func steady(ioctx *rados.IOContext, name string) (traces, error) {
	before, err := look(ioctx, name)
	for range 10 {
		if err != nil || before.id == "" {
			return before, err
		}
		time.Sleep(100 * time.Millisecond)
		var now traces
		if now, err = look(ioctx, name); err == nil && now == before {
			return now, nil
		}
		before = now
	}
	return before, errors.Join(err, errChanging)
}

// found opens an image by open, and once more if librbd did not find it and it is mended, or
// was made or renamed meanwhile.
func (p *Pool) found(c *client, ioctx *rados.IOContext, name string, open func() error) error {
	err := open()
	if errno(err) == syscall.ENOENT {
		if err = p.mend(c, ioctx, name); err != nil {
			return err
		}
		if err = open(); errno(err) == syscall.ENOENT {
			return p.unfound(ioctx, name)
		}
	}
	return p.unopened(ioctx, name, err)
}

// mend makes an image that librbd does not find under its name one that it does, if
// that is surely right; it may be that it does by now. ErrNoVolume if there is none: nothing,
// or remains that free takes away. Any other error is of an image that is there, with the cure.
func (p *Pool) mend(c *client, ioctx *rados.IOContext, name string) error {
	t, err := look(ioctx, name)
	if err == nil {
		err = p.remains(c, ioctx)
	}
	if err == nil && t.id != "" && t.kind() != remains {
		// Any of the others is seen, too, of an image that somebody just makes or renames.
		t, err = steady(ioctx, name)
	}
	if err != nil || t.id == "" {
		return cmp.Or(err, backend.ErrNoVolume)
	}
	switch t.kind() {
	case remains:
		return cmp.Or(p.noData(ioctx, t), backend.ErrNoVolume)
	case whole:
		return p.putBack(ioctx, t)
	case comingBack:
		p.cfg.Log.Warnf("image %s (id %s): its restoration from the trash was cut short, and is completed", t.name, t.id)
		if err = rbd.TrashRestore(ioctx, t.id, t.name); errno(err) == syscall.ENOENT { // it is complete by now
			err = nil
		}
		return err
	case unopenable:
		return nil
	}
	return p.refuse(t)
}

// unfound says why librbd does not find an image of which all seems to be there.
func (p *Pool) unfound(ioctx *rados.IOContext, name string) error {
	t, err := look(ioctx, name)
	if err == nil && t.kind() == unopenable {
		return p.refuse(t)
	}
	return cmp.Or(err, errChanging)
}

// kind is what may be done about traces.
type kind int

const (
	unclear    kind = iota
	whole           // only rbd_id.NAME is missing
	comingBack      // a restoration from the trash was cut short
	remains         // the name is taken, and no image has it
	unopenable      // all is there: if librbd still does not find it, its pool of data or its parent is gone
)

func (t traces) kind() kind {
	switch agree := t.held == "" || t.listed == "" || t.held == t.listed; {
	case !agree:
		return unclear
	case t.trashed && t.state == restoring:
		return comingBack
	case t.trashed, !t.header:
		return remains
	case t.held != "":
		return unopenable
	case t.back == t.name:
		return whole
	}
	return unclear
}

// putBack makes rbd_id.NAME, unless the image goes to the trash meanwhile.
func (p *Pool) putBack(ioctx *rados.IOContext, t traces) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(text(t.id))
	if err := op.Operate(ioctx, idObject(t.name), rados.OperationNoFlag); err != nil {
		if errno(err) == syscall.EEXIST {
			return nil
		}
		return err
	}
	p.cfg.Log.Warnf("image %s (id %s) was whole, but for the object %s, which was missing: it is put back", t.name, t.id, idObject(t.name))
	_, trashed, err := trashState(ioctx, t.id)
	if err == nil && trashed {
		return errors.Join(errChanging, dropID(ioctx, t))
	}
	return err
}

// refuse says what there is of an image that is not to be deleted, and what to do.
func (p *Pool) refuse(t traces) error {
	if t.kind() == unopenable {
		return fmt.Errorf("%w: image %s is there, but librbd does not find all of it; is its data pool gone, or is it a clone whose parent, or the parent's pool, is gone? "+
			"If it is not wanted: rbd rm %s/%s", backend.ErrUnusable, t.name, p.poolSpec(), t.name)
	}
	return fmt.Errorf("%w: image %s is there, but damaged: rbd_directory has id %q under its name, and under that the name %q; object %s has %q; "+
		"nothing is done to it; look at it with rbd info --pool %s --namespace '%s' --image-id ID, and make these agree", backend.ErrUnusable,
		t.name, t.listed, t.back, idObject(t.name), t.held, p.cfg.Pool, p.cfg.Namespace)
}

// noData is an error if an image of which the header is missing has left data: then it
// was not a create, nor a removal, that was cut short. Further pools may have it.
func (p *Pool) noData(ioctx *rados.IOContext, t traces, further ...*rados.IOContext) error {
	if t.header || t.trashed {
		return nil
	}
	found := func(ioctx *rados.IOContext, object string) error {
		there, err := exists(ioctx, object)
		if there {
			err = fmt.Errorf("%w: image %s (id %s) has lost its object %s, and there is still %s of it: nothing is made in its place; "+
				"if its data is not wanted: rados -p %s --namespace '%s' rm %s", backend.ErrUnusable, t.name, t.id, headerObject(t.id), object,
				p.cfg.Pool, p.cfg.Namespace, object)
		}
		return err
	}
	// librbd makes the object map right after the header, and deletes it right after it.
	err := errors.Join(found(ioctx, objectMap(t.id)), found(ioctx, "rbd_data."+t.id+".0000000000000000"))
	for _, data := range further {
		err = errors.Join(err, found(data, fmt.Sprintf("rbd_data.%d.%s.0000000000000000", ioctx.GetPoolID(), t.id)))
	}
	if err == nil {
		return nil
	}
	if header, _ := exists(ioctx, headerObject(t.id)); header {
		return errChanging
	}
	return err
}

// free makes a name free that is taken by remains. Nothing else is deleted: what is in
// the trash stays there.
func (p *Pool) free(ioctx *rados.IOContext, name string, further ...*rados.IOContext) error {
	t, err := steady(ioctx, name)
	if err != nil || t.id == "" {
		return err
	}
	if t.kind() != remains { // by now it is an image
		return rbd.ErrExist
	}
	if err := p.noData(ioctx, t, further...); err != nil {
		return err
	}
	p.cfg.Log.Warnf("the name %s is still taken by image id %s, of which a create or a removal was cut short: it is made free", name, t.id)
	return t.drop(ioctx)
}

// drop takes a name from an image, as the last steps to the trash do.
func (t traces) drop(ioctx *rados.IOContext) error {
	if err := dropID(ioctx, t); err != nil {
		return err
	}
	if t.listed != "" {
		// ESTALE and ENOENT: the entries are not, or not both, those of this image.
		if err := tell(ioctx, directory, "dir_remove_image", texts(t.name, t.id)); err != nil {
			return err
		}
	}
	if t.trashed && t.state == moving {
		return setTrashState(ioctx, t.id, moving, inTrash)
	}
	return nil
}

// dropID deletes rbd_id.NAME, if it holds the id.
func dropID(ioctx *rados.IOContext, t traces) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.CmpExt(text(t.id), 0)
	op.Remove()
	err := op.Operate(ioctx, idObject(t.name), rados.OperationNoFlag)
	if e := errno(err); e == syscall.ENOENT || e >= 4095 { // librados: it differs, at byte e - 4095
		return nil
	}
	return err
}
