// Package rootfs checks the managed plugin that cmd/plugin.sh builds, as files:
// nothing of it is run, so that it may be of another architecture. Needs root,
// Debian's mirror, and for the other architecture its compiler.
package rootfs
