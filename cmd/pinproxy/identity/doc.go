// Package identity makes this process another user with a few capabilities, and lets it change few files, with no way
// back.
//
// Credentials, capabilities, no_new_privs and Landlock belong to threads, and a Go program has many. exec keeps only
// one thread, so it is the only way that leaves nothing behind, with or without cgo in the binary: Exec starts this
// program anew. Linux only.
//
//	what is missing                      what happens
//	CAP_SETUID, the user, its mapping    Find, Effective and Mapped tell in advance; Exec fails
//	CAP_SETPCAP                          the bounding set stays; no_new_privs keeps it from mattering
//	a capability to keep                 it is not there afterwards either
//	Landlock in the kernel               files stay as writable as they are for the user
package identity
