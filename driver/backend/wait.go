package backend

import (
	"context"
	"fmt"
	"time"
)

// Within waits for a call that cannot be interrupted, a system call or one of
// librbd, no longer than the context lasts. The call then goes on alone: what
// it returns is lost.
func Within(ctx context.Context, what string, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- Survive(call) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended in time: %w", what, ctx.Err())
	}
}

// Sleep tells whether the time passed before the context ended.
func Sleep(ctx context.Context, t time.Duration) bool {
	select {
	case <-time.After(t):
		return true
	case <-ctx.Done():
		return false
	}
}

// HasTime tells whether a context lasts for longer than that.
func HasTime(ctx context.Context, t time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() == nil && (!ok || time.Until(deadline) > t)
}

// Pause is Sleep that does not begin if the context leaves no time for it.
func Pause(ctx context.Context, t time.Duration) bool { return HasTime(ctx, t) && Sleep(ctx, t) }

// CleanupContext is the context of what has to be done even though the request has ended:
// undoing, closing. It has a deadline of its own.
func CleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
}
