// Agent runs commands in a guest for the tests outside: over HTTP, each with a
// time limit. What the command prints is streamed; how it ended is the trailer
// Exit, empty for well. Requests with a header Socket go on to that unix socket.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/run", run)
	mux.HandleFunc("/work", work)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "socket" },
		Transport:     &http.Transport{DialContext: dialSocket, DisableKeepAlives: true},
		FlushInterval: -1,
	}
	server := http.Server{Addr: os.Args[1], ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := r.Header.Get("Socket"); path != "" {
			proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), socketKey{}, path)))
			return
		}
		mux.ServeHTTP(w, r)
	})}
	fmt.Fprintln(os.Stderr, "agent:", server.ListenAndServe())
	os.Exit(1)
}

type socketKey struct{}

func dialSocket(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", ctx.Value(socketKey{}).(string))
}

// run has the command in the form values arg, and its limit in seconds.
func run(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	limit, err := strconv.Atoi(r.Form.Get("limit"))
	args := r.Form["arg"]
	if err != nil || len(args) == 0 {
		http.Error(w, "limit or arg is missing", http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "Exit")
	w.WriteHeader(http.StatusOK)
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(limit)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	out := flushed{w}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	done := make(chan struct{})
	go func() {
		err = cmd.Run()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(3 * time.Second): // in the midst of I/O that never ends, a process cannot be killed
		}
	}
	if ctx.Err() != nil {
		w.Header().Set("Exit", fmt.Sprintf("no end within %d s: %v", limit, ctx.Err()))
		return
	}
	exit := ""
	if err != nil {
		exit = err.Error()
	}
	w.Header().Set("Exit", exit)
}

// work is always the same: who asks for it sees how fast the guest is.
func work(w http.ResponseWriter, _ *http.Request) {
	_, _ = fmt.Fprintln(w, tool.Work(160)) // so long that it has to share the processors
}

// flushed lets everything out at once.
type flushed struct{ http.ResponseWriter }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if flusher, ok := f.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
	return n, err
}

var _ io.Writer = flushed{}
