package rbd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// errno takes the error number out of what go-ceph returns; 0 if there is none.
func errno(err error) syscall.Errno {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0
	}
	code := coded.ErrorCode()
	return syscall.Errno(max(code, -code))
}

// translate turns an error of go-ceph into the driver's words. Of a record that was
// changed by somebody else says only what writes records; see Pool.write.
func translate(what string, err error) error {
	if err == nil {
		return nil
	}
	var kind error
	switch errno(err) {
	case syscall.ENOENT:
		kind = backend.ErrNotFound
	case syscall.EEXIST:
		kind = backend.ErrExists
	case syscall.EBUSY, syscall.ENOTEMPTY:
		kind = backend.ErrBusy
	case syscall.ERANGE: // go-ceph's buffers have an end; only for a record it means that somebody was faster
		return fmt.Errorf("%s: it is too large to be read (%w)", what, err)
	case syscall.EACCES, syscall.EPERM:
		return fmt.Errorf("%s: %w (%w); the README lists the caps it needs", what, backend.ErrDenied, err)
	case syscall.ENOSPC, syscall.EDQUOT:
		return fmt.Errorf("%s: the cluster or the pool is full, or over its quota (%w); see ceph df and ceph health detail", what, err)
	case syscall.ETIMEDOUT, syscall.ESHUTDOWN, syscall.ENOTCONN, syscall.EINTR:
		kind = backend.ErrUnavailable
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%w)", what, kind, err)
}

// gone tells that a client will never work again: it was fenced or shut down.
func gone(err error) bool {
	switch errno(err) {
	case syscall.ESHUTDOWN, syscall.ENOTCONN:
		return true
	}
	return false
}
