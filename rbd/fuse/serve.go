package fuse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	ours "github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

const (
	lockFd       = 3 // see Mapper.start
	readyPrefix  = "ready "
	failedPrefix = "failed "
)

// clientOptions are those of the image's own client. The page cache is in
// front of it, so librbd needs none. A discard must zero all that it names,
// because the loop device passes "write zeroes" on as one. An I/O waits for
// Ceph as long as it takes, as it would with the kernel's client.
var clientOptions = map[string]string{
	"rbd_cache":                "false",
	"rbd_skip_partial_discard": "false",
	"client_mount_timeout":     "30",
	"admin_socket":             "",
}

// Serve is the life of a child: it reads its job from in, says on out that it
// is ready or why not, and serves the image until its filesystem is unmounted.
func Serve(in io.Reader, out io.Writer) error {
	signal.Ignore(syscall.SIGPIPE) // librados' threads may meet it, and Go would die of it
	err := serve(in, func(addr string) error {
		_, err := fmt.Fprintln(out, readyPrefix+addr)
		return err
	})
	if err != nil {
		_, _ = fmt.Fprintf(out, "%s%v\n", failedPrefix, err)
	}
	return err
}

func serve(in io.Reader, ready func(addr string) error) error {
	lock := os.NewFile(lockFd, "lock")
	defer func() { _ = lock.Close() }() // and not before: the garbage collector would
	unix.CloseOnExec(lockFd)
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil {
		return err
	}
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	conn, err := ours.Connect(ours.Config{Cluster: j.Cluster, ConfFile: j.ConfFile, User: j.User, Keyring: j.Keyring}, clientOptions)
	if err != nil {
		return err
	}
	defer conn.Shutdown()
	// What is read through this client must not be older than the fence of the
	// one before it.
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return err
	}
	addr, err := conn.GetAddrs()
	if err != nil {
		return err
	}
	ioctx, err := conn.OpenIOContext(j.Pool)
	if err != nil {
		return fmt.Errorf("pool %s: %w", j.Pool, err)
	}
	defer ioctx.Destroy()
	ioctx.SetNamespace(j.Namespace)
	img, err := open(ioctx, j)
	if errors.Is(err, rbd.ErrNotFound) { // whoever asks has it open by its name
		return fmt.Errorf("librbd does not find all of the image by its id (%w): has rbd_directory lost it, or is it a clone whose parent is gone? "+
			"See rbd info --pool %s --namespace '%s' --image-id %s", err, j.Pool, j.Namespace, j.ID)
	}
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	if err := unlock(img, j.Encryption); err != nil {
		return err
	}
	root := &directory{name: fileName(addr), image: &image{img: img, readOnly: j.ReadOnly}}
	src := source{Pool: j.Pool, Namespace: j.Namespace, ID: j.ID, Snap: j.Snap, Addr: addr, Name: j.Name}
	options := &fs.Options{MountOptions: fuse.MountOptions{
		FsName: src.String(), Name: "docker-volume-rbd", DirectMount: true, DirectMountStrict: true,
		MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, DisableXAttrs: true, DisableSplice: true,
	}}
	// Not fs.Mount: it opens a file of the new filesystem in this very process,
	// which, killed at that moment, waits for its own answer and never dies.
	// The mount is there when NewServer returns; what comes before Serve waits.
	server, err := fuse.NewServer(fs.NewNodeFS(root, options), j.Mountpoint, &options.MountOptions)
	if err != nil {
		return fmt.Errorf("mount %s: %w", j.Mountpoint, err)
	}
	if err := ready(addr); err != nil { // its parent was killed: nobody knows of it
		_ = unix.Unmount(j.Mountpoint, unix.MNT_DETACH)
		_ = os.Remove(j.Mountpoint)
		// Its lock stays, for Sweep: it tells that the image is open, until it is closed.
		return err
	}
	server.Serve()
	return nil
}

func open(ioctx *rados.IOContext, j job) (*rbd.Image, error) {
	if j.ReadOnly {
		return rbd.OpenImageByIdReadOnly(ioctx, j.ID, j.Snap) // "" = rbd.NoSnapshot
	}
	return rbd.OpenImageById(ioctx, j.ID, rbd.NoSnapshot)
}

// unlock opens an encrypted image; what is read and written then is the plain text.
func unlock(img *rbd.Image, e *backend.Encryption) error {
	if e == nil {
		return nil
	}
	options, err := ours.EncryptionOptions(e)
	if err != nil {
		return err
	}
	err = img.EncryptionLoad(options)
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return err
	}
	switch syscall.Errno(-coded.ErrorCode()) {
	case syscall.EPERM:
		return errors.New("the passphrase does not open the encrypted image")
	case syscall.EINVAL:
		return fmt.Errorf("the image is not encrypted with %s", e.Format)
	}
	return err
}

// directory is the root of the filesystem.
type directory struct {
	fs.Inode
	name  string
	image *image
}

var _ fs.NodeOnAdder = (*directory)(nil)

func (d *directory) OnAdd(ctx context.Context) {
	d.AddChild(d.name, d.NewPersistentInode(ctx, d.image, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

// image is the file. go-fuse calls it from many goroutines at once, and librbd
// orders overlapping writes.
type image struct {
	fs.Inode
	img      *rbd.Image
	readOnly bool
	dirty    atomic.Bool // written since the last flush
	size     atomic.Uint64
}

var (
	_ fs.NodeGetattrer = (*image)(nil)
	_ fs.NodeOpener    = (*image)(nil)
	_ fs.NodeReader    = (*image)(nil)
	_ fs.NodeWriter    = (*image)(nil)
	_ fs.NodeFsyncer   = (*image)(nil)
	_ fs.NodeAllocater = (*image)(nil)
)

func (i *image) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	size, err := i.img.GetSize() // librbd hears of a resize by itself
	if err != nil {
		// The loop device takes an error for a size of 0, under whatever is mounted on it.
		if size = i.size.Load(); size == 0 {
			return failed("size", 0, 0, err)
		}
	}
	i.size.Store(size)
	out.Mode, out.Size, out.Blocks, out.Blksize = fuse.S_IFREG|0o600, size, size/512, 4096
	return fs.OK
}

func (i *image) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if i.readOnly && flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, 0, fs.OK
}

func (i *image) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := i.img.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, failed("read", off, len(dest), err)
	}
	return fuse.ReadResultData(dest[:n]), fs.OK
}

func (i *image) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n, err := i.img.WriteAt(data, off)
	if err != nil {
		return 0, failed("write", off, len(data), err)
	}
	i.dirty.Store(true)
	return uint32(n), fs.OK
}

// Fsync leaves librbd alone if there is nothing to flush: its flush takes the
// exclusive lock first, for which a reader may have to wait until Ceph has given
// up a dead writer.
func (i *image) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if !i.dirty.Swap(false) {
		return fs.OK
	}
	if err := i.img.Flush(); err != nil {
		i.dirty.Store(true)
		return failed("flush", 0, 0, err)
	}
	return fs.OK
}

// maxDiscard is below what librbd takes in one call (INT_MAX).
const maxDiscard = 1 << 30

// Allocate is how the loop device passes on discard and write zeroes.
func (i *image) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	all, err := i.img.GetSize()
	if err != nil {
		return failed("size", 0, 0, err)
	}
	if off > all {
		return syscall.EINVAL
	}
	for end := min(off+size, all); off < end; {
		n := min(end-off, maxDiscard)
		if _, err := i.img.Discard(off, n); err != nil {
			return failed("discard", int64(off), int(n), err)
		}
		off += n
		i.dirty.Store(true)
	}
	return fs.OK
}

// failed says why on the child's standard error, which ends up in the plugin's
// log; the kernel knows only numbers, and few.
func failed(op string, off int64, length int, err error) syscall.Errno {
	fmt.Fprintf(os.Stderr, "%s of %d bytes at %d: %v\n", op, length, off, err)
	return syscall.EIO
}
