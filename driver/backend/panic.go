package backend

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// PanicError is a fault of the plugin's own, met while it worked on something.
type PanicError struct {
	Value any
	Stack []byte // of where it was met
}

// Error tells who reads it where the rest is.
func (p *PanicError) Error() string {
	return fmt.Sprintf("a fault of the plugin, please report it with the stack in its log: %.200v", p.Value)
}

// Survive makes an error, a *PanicError, of a panic: what is wrong with one volume must
// not end the plugin for all.
func Survive(do func() error) (err error) {
	defer func() {
		met := recover()
		if met == nil {
			return
		}
		known := new(PanicError)
		if again, ok := met.(error); ok && errors.As(again, &known) { // of another goroutine
			err = again
			return
		}
		err = &PanicError{Value: met, Stack: debug.Stack()}
	}()
	return do()
}
