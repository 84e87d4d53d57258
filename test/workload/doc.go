// Package workload proves that no acknowledged write is lost while a volume
// moves between nodes. Writers append records to one log, one after another on
// whatever node has the volume, and report what they do to the test: see
// program writer. A Checker judges the reports and, in the end, the log.
package workload
