package swarm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// Ask sends a request to the plugin's own socket.
func (n *Node) Ask(path, body string) (string, error) {
	return tool.Run(time.Minute, "nsenter", "-t", strconv.Itoa(n.init), "-m", "curl", "-sS", "--unix-socket",
		"/run/docker/plugins/"+n.plugin+"/rbd.sock", "-d", body, "http://rbd/"+path)
}

// Guard is a line of the answer of Guard.List.
type Guard struct {
	Volume, Node, State string
	Addrs               []string
	Alive               bool
}

// Guards asks the node's plugin who holds what.
func (n *Node) Guards() ([]Guard, error) { return n.guards("Guard.List", "{}") }

// Fence asks it to fence another node; it returns what was taken.
func (n *Node) Fence(node string) ([]Guard, error) {
	return n.guards("Guard.Fence", `{"node":"`+node+`"}`)
}

func (n *Node) guards(path, body string) ([]Guard, error) {
	out, err := n.Ask(path, body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Guards []Guard
		Err    string
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", out, err)
	}
	if answer.Err != "" {
		return answer.Guards, errors.New(answer.Err)
	}
	return answer.Guards, nil
}
