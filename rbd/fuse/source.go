package fuse

import (
	"fmt"
	"strings"
)

// source is what the FUSE mount says of itself in mountinfo. The name comes
// last: it alone may be anything.
type source struct {
	Pool, Namespace, ID, Snap, Addr, Name string
}

// fileName is the name of the one file of the filesystem. The loop devices of a
// kernel are told apart by the paths of their files alone, and the plugins of
// two containers have the same paths: the client's nonce makes them differ.
func fileName(addr string) string {
	_, nonce, _ := strings.Cut(addr, "/")
	return "image-" + nonce
}

func (s source) String() string {
	return strings.Join([]string{"rbd", s.Pool, s.Namespace, s.ID, s.Snap, s.Addr, s.Name}, "|")
}

func parseSource(text string) (s source, err error) {
	f := strings.SplitN(text, "|", 7)
	if len(f) != 7 || f[0] != "rbd" {
		return s, fmt.Errorf("its source %q names no image", text)
	}
	return source{Pool: f[1], Namespace: f[2], ID: f[3], Snap: f[4], Addr: f[5], Name: f[6]}, nil
}
