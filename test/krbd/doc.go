// Package krbd tests the kernel's client, package rbd/krbd and the plugin on it,
// in two guests that have a kernel each: the contract of a mapper, what can
// happen to nodes, the managed plugin under an engine, and figures.
//
// test/krbd.sh gives it what it needs. The tests run outside of the guests, in
// the network namespace of the bridge, and reach into them by their agents.
package krbd
