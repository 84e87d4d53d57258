// Package tool is what several packages of tests need to run programs and to
// wait for what they do.
package tool

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Run runs a program and returns what it prints; the error says what it says. The
// limit is that of an idle machine.
func Run(limit time.Duration, name string, args ...string) (string, error) {
	limit *= generous
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end within %v", limit)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), err
}

// Within repeats until there is no error any more. The limit is that of an idle
// machine.
func Within(limit time.Duration, try func() error) error {
	limit *= generous
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
	}
}
