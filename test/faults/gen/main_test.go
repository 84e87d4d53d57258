package main

import (
	"os"
	"testing"
)

func TestTheStepsAreThoseOfTheCode(t *testing.T) {
	want, err := steps("../../../driver/backend")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../steps.go")
	if err != nil || string(got) != string(want) {
		t.Errorf("steps.go is not what driver/backend makes of it: go generate ./test/faults (%v)", err)
	}
}
