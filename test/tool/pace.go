package tool

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Limits are those of an idle machine. What waits for a condition gets so many times
// as much: it loses nothing by that, and a busy machine needs it.
const generous = 3

// idle is what the fixed work of Slowness takes on an idle machine.
const idle = 140 * time.Millisecond

// Slowness is how much slower this machine is now than an idle one, at least 1: what
// is judged by its time is judged by that.
func Slowness() float64 {
	began := time.Now()
	var all sync.WaitGroup
	var result atomic.Uint64 // or a compiler might leave the work out
	for range runtime.NumCPU() {
		all.Go(func() { result.Add(Work(200)) })
	}
	all.Wait()
	return max(1, time.Since(began).Seconds()/idle.Seconds())
}

// Work is so many million steps of arithmetic that no compiler and no processor can
// make shorter; it returns their result.
func Work(millions int) uint64 {
	x := uint64(1)
	for range millions * 1_000_000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}
