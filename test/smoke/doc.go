// Package smoke is the short test of one combination of releases: what users do with a
// volume, from its creation to its removal, with a take-over in between. What is asked
// for it, by docker, by podman or on the plugin's socket, is the same each time; which
// Ceph, engine and tools there are is what test/suite.sh has put in place.
//
//	test/suite.sh forky -- go test ./test/smoke -v
//
// It runs in mount and process namespaces of its own. The plugin is the one that is
// shipped, with its root filesystem (TEST_PLUGIN, as cmd/plugin.sh makes it).
package smoke
