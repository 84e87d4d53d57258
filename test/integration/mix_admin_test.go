package integration

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	crbd "github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// admin does beside the plugins what people do with rbd and rados.
type admin struct {
	conn  *rados.Conn
	ioctx *rados.IOContext
}

func newAdmin(t *testing.T, cfg rbd.Config) *admin {
	t.Helper()
	cfg.User = "client.admin"
	conn, err := rbd.Connect(cfg, map[string]string{"admin_socket": ""})
	if err != nil {
		t.Fatal(err)
	}
	ioctx, err := conn.OpenIOContext(cfg.Pool)
	if err != nil {
		t.Fatal(err)
	}
	ioctx.SetNamespace(cfg.Namespace)
	t.Cleanup(func() {
		ioctx.Destroy()
		conn.Shutdown()
	})
	return &admin{conn, ioctx}
}

// id is that of the image of a name, "" if there is none.
func (a *admin) id(name string) string {
	data := a.read("rbd_id." + name)
	if len(data) < 5 {
		return ""
	}
	return string(data[4:])
}

// whole tells whether there is the header of an image.
func (a *admin) whole(id string) bool {
	_, err := a.ioctx.Stat("rbd_header." + id)
	return !errors.Is(err, rados.ErrNotFound)
}

// trashed tells whether an image is in the trash.
func (a *admin) trashed(id string) (bool, error) {
	list, err := crbd.GetTrashList(a.ioctx)
	if errors.Is(err, crbd.ErrNotFound) {
		return false, nil
	}
	for _, e := range list {
		if e.Id == id {
			return true, err
		}
	}
	return false, err
}

// text is a string as Ceph's objects hold it: behind its length.
func text(s string) []byte {
	return append([]byte{byte(len(s)), 0, 0, 0}, s...)
}

// garbage is what a damaged record holds.
var garbage = []byte("\x00garbage")

func (a *admin) isGarbage(object string) bool {
	return string(a.read(object)) == string(garbage)
}

// read reads a small object, nil if it is not there.
func (a *admin) read(object string) []byte {
	data := make([]byte, 64<<10)
	n, err := a.ioctx.Read(object, data, 0)
	if err != nil {
		return nil
	}
	return data[:n]
}

// putBack writes an object that is not there.
func (a *admin) putBack(object string, data []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(data)
	return op.Operate(a.ioctx, object, rados.OperationNoFlag)
}

// detach takes a clone out of the list of children that its parent has of a snapshot.
func (a *admin) detach(parent, clone, snap string) error {
	img, err := crbd.OpenImageByIdReadOnly(a.ioctx, parent, crbd.NoSnapshot)
	if err != nil {
		return err
	}
	snapID, err := img.GetSnapID(snap)
	if err := errors.Join(err, img.Close()); err != nil {
		return err
	}
	namespace, err := a.ioctx.GetNamespace()
	if err != nil {
		return err
	}
	child := binary.LittleEndian.AppendUint64(nil, uint64(a.ioctx.GetPoolID()))
	child = append(append(child, text(clone)...), text(namespace)...)
	in := append(binary.LittleEndian.AppendUint64(nil, snapID), 2, 1) // versions of its encoding
	in = append(binary.LittleEndian.AppendUint32(in, uint32(len(child))), child...)
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec("rbd", "child_detach", in)
	return op.Operate(a.ioctx, "rbd_header."+parent, rados.OperationNoFlag)
}

// damages are small objects that get lost, or hold nonsense.
var damages = []string{"id", "directory", "guard", "pending"}

// damage does one to an image.
func (a *admin) damage(kind, name, id string) error {
	switch kind {
	case "id":
		return a.ioctx.Delete("rbd_id." + name)
	case "directory":
		return a.ioctx.RmOmapKeys("rbd_directory", []string{"name_" + name, "id_" + id})
	case "guard":
		return a.ioctx.WriteFull("docker_volume.guard."+id, garbage)
	case "pending":
		return a.ioctx.WriteFull("docker_volume.pending."+name, garbage)
	}
	return nil
}

// repair undoes it, as far as nobody else has.
func (a *admin) repair(kind, name, id string) (err error) {
	switch kind {
	case "id":
		if a.id(name) == "" {
			err = a.ioctx.WriteFull("rbd_id."+name, text(id))
		}
	case "directory":
		err = a.ioctx.SetOmap("rbd_directory", map[string][]byte{"name_" + name: text(id), "id_" + id: text(name)})
	case "guard":
		err = a.clean("docker_volume.guard." + id)
	case "pending":
		err = a.clean("docker_volume.pending." + name)
	}
	return err
}

// clean takes garbage away.
func (a *admin) clean(object string) error {
	if !a.isGarbage(object) {
		return nil
	}
	return a.ioctx.Delete(object)
}

// toTrash is rbd trash mv.
func (a *admin) toTrash(name string, delay time.Duration) error {
	return crbd.GetImage(a.ioctx, name).Trash(delay)
}

// resize makes an image larger by this much.
func (a *admin) resize(name string, by, most uint64) error {
	img, err := crbd.OpenImage(a.ioctx, name, crbd.NoSnapshot)
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	size, err := img.GetSize()
	if err != nil || size+by > most {
		return err
	}
	return img.Resize(size + by)
}

// objects lists those of the plugin whose names begin like this.
func (a *admin) objects(prefix string) (names []string, err error) {
	iter, err := a.ioctx.Iter()
	if err != nil {
		return nil, err
	}
	defer iter.Close()
	for iter.Next() {
		if name := iter.Value(); len(name) > len(prefix) && name[:len(prefix)] == prefix {
			names = append(names, name[len(prefix):])
		}
	}
	return names, iter.Err()
}

// restore is rbd trash restore.
func (a *admin) restore(id, name string) error { return crbd.TrashRestore(a.ioctx, id, name) }

// unsnap is rbd snap purge of an image, which may be in the trash, or rbd snap rm of one of its
// snapshots; it returns those that are gone.
func (a *admin) unsnap(id, name string) (gone []string, err error) {
	img, err := crbd.OpenImageById(a.ioctx, id, crbd.NoSnapshot)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	snaps, err := img.GetSnapshotNames()
	for _, s := range snaps { // those that are kept for copies only have no name here
		if name != "" && s.Name != name {
			continue
		}
		if err = img.GetSnapshot(s.Name).Remove(); err != nil {
			break
		}
		gone = append(gone, s.Name)
	}
	return gone, err
}

// delete is rbd trash rm.
func (a *admin) delete(id string) error { return crbd.TrashRemove(a.ioctx, id, true) }

// rename is rbd mv.
func (a *admin) rename(from, to string) error { return crbd.GetImage(a.ioctx, from).Rename(to) }
