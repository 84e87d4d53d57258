package main

import (
	"fmt"
	"net"
	"os"

	"github.com/docker-volume-rbd/docker-volume-rbd/plugin"
)

// listens returns what makes the listener for Docker: on the path or, where systemd has
// made the socket and passed it on, on that. It is then there before the program is, and
// while it is started anew: who asks meanwhile waits.
func listens(path string, passed []*os.File) (func() (net.Listener, error), error) {
	switch len(passed) {
	case 0:
		return func() (net.Listener, error) { return plugin.Listen(path) }, nil
	case 1:
		return func() (net.Listener, error) { return net.FileListener(passed[0]) }, nil
	}
	return nil, fmt.Errorf("systemd has passed %d sockets on: give the socket unit one ListenStream", len(passed))
}
