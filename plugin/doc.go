// Package plugin speaks Docker's VolumeDriver protocol on a unix socket: it
// decodes, sets a deadline just inside Docker's own, notices when Docker hangs
// up, and writes one log line per request. What a request means is decided in
// package driver.
//
// It is a server of our own on the types of go-plugins-helpers, because the
// handler there gives a driver neither a context nor a way to hang up. Hanging
// up is an answer: to dockerd any error from Get means "there is no such
// volume", and it deletes its own record of it; only a broken connection says
// "not now" (moby, daemon/volume/service/store.go).
//
// Start reading at [Server.Handler]; every request goes through serve.
package plugin
