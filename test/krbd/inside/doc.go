// Package inside has the benchmarks of the kernel's client that run inside a
// guest, beside a plugin that runs there: what the plugin takes, what the system
// calls take that it cannot do without, and what Ceph's tool and mount take.
// test/krbd starts it and reads its figures.
package inside
