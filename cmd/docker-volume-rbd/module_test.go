package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/plugin"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/krbd"
)

// said is a log that may be read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// A module that takes longer to load than requests can wait is no missing one: who
// asks is told, and when modprobe has ended it decides.
func TestTheModuleIsWaitedFor(t *testing.T) {
	for _, mapper := range []string{"auto", "krbd"} {
		t.Run(mapper, func(t *testing.T) {
			dir := t.TempDir()
			loaded := make(chan struct{})
			module := func(ctx context.Context) error { // package krbd tests the real one
				select {
				case <-loaded:
					return errors.New("the kernel has no rbd, and modprobe rbd: exit status 1: not found")
				case <-ctx.Done():
					return krbd.ErrLate
				}
			}
			t.Setenv("RBD_MAPPER", mapper)
			t.Setenv("NODE_NAME", "modules"+mapper)
			log, out := logrus.New(), &said{}
			log.SetOutput(out)
			s := service{
				log: log, listen: func() (net.Listener, error) { return plugin.Listen(filepath.Join(dir, "s")) }, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"),
				conf: filepath.Join(dir, "none.conf"), module: module, patience: 100 * time.Millisecond, stop: func() {},
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			type outcome struct {
				again bool
				err   error
			}
			ended := make(chan outcome, 1)
			begin := func() {
				go func() {
					again, err := s.serve(ctx)
					ended <- outcome{again, err}
				}()
			}
			end := func() outcome {
				select {
				case e := <-ended:
					return e
				case <-time.After(30 * time.Second):
					t.Fatal("it has not ended")
					return outcome{}
				}
			}
			begin()
			if answer := mount(t, filepath.Join(dir, "s")); !strings.Contains(answer, "setting RBD_MAPPER="+mapper+": the module rbd is still being loaded") {
				t.Errorf("meanwhile the answer is %s", answer)
			}
			if strings.Contains(out.String(), "mapper fuse") {
				t.Errorf("the other mapper was taken:\n%s", out)
			}
			close(loaded)
			if e := end(); e.err != nil || !e.again {
				t.Fatalf("it ended with %+v", e)
			}
			begin()
			want := map[string]string{"auto": "mapper fuse (the kernel has no rbd, and modprobe rbd: exit status 1: not found)", "krbd": "RBD_MAPPER=krbd: the kernel has no rbd"}[mapper]
			mount(t, filepath.Join(dir, "s"))
			if !strings.Contains(out.String(), want) {
				t.Errorf("then it says\n%s", out)
			}
			cancel()
			if e := end(); e.err != nil || e.again {
				t.Errorf("it ended with %+v", e)
			}
		})
	}
}

// mount asks for a volume, as soon as the plugin answers.
func mount(t *testing.T, socket string) string {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var resp *http.Response
		if resp, err = client.Post("http://rbd/VolumeDriver.Mount", "application/json", strings.NewReader(`{"Name":"v","ID":"a"}`)); err == nil {
			text, readErr := io.ReadAll(resp.Body)
			if err = errors.Join(readErr, resp.Body.Close()); err == nil {
				return string(text)
			}
		}
	}
	t.Fatal(err)
	return ""
}
