// Package model checks driver/guard/guard.pml, the model of the guard protocol, with
// spin, and that it still is a model of the code.
package model
