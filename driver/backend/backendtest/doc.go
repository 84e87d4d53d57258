// Package backendtest is the contract of the interfaces of package backend, as tests.
// Every implementation runs them, the doubles of package memory and the real
// ones alike: what policy is tested with behaves as what it will meet.
package backendtest
