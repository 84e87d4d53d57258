// Package faults stands between the plugin's policy and its parts, and lets any
// single step go wrong: it fails, it hangs, or it is the last thing that the
// process does. It is in the sabotaged build only (cmd/docker-volume-rbd,
// sabotage.go) and told what to do by the environment:
//
//	FAULT="die-after 17"   the kind, and at which step; steps are counted in requests only
//	FAULT_LOG=/tmp/steps   a file that gets a line for each step: number and name
//
// The steps, steps.go, are generated from the interfaces of driver/backend: go
// generate writes them, a test compares, and an interface that has grown does
// not compile until it has been run.
//
// test/integration, TestAFaultAtAnyStep, goes through them.
package faults

//go:generate go run ./gen
