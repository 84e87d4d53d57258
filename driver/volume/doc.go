// Package volume is what a volume is asked to be, in pure values: no call of it asks Ceph,
// the kernel or a clock.
//
//   - [Spec] is what the options of docker volume create say, over the defaults of the
//     settings: [ParseSpec] checks all of it, and [Spec.Match] holds a volume that exists
//     against it.
//   - [Metadata] is what is left of that for the first mount and for later ones: a record
//     beside the image, and the image's own metadata, which an operator may edit.
//
// Where to start: [ParseSpec] in spec.go. To add an option: its name and its place among
// [OptionNames] there, its field in Spec, its check; if later mounts need it, its key and field
// in metadata.go; its row in the tables of README, which a test compares.
package volume
