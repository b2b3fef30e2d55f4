"""Our own engine for the kernel's FUSE protocol on /dev/fuse.

Modules, from the bytes outwards: `abi` (numbers and layouts of <linux/fuse.h>), `decode` (request bytes to the
arguments of a Union verb), `encode` (the verb's result to reply bytes), `session` (negotiated features, counters,
waiting requests), `listing` and `data` (the requests that fill a buffer), `handlers` (requests that need more code),
`dispatch` (one table: opcode to decode, verb, encode), all of them without a descriptor of the device; `device` (the
descriptor), `busy_poll` (polling for requests), `turn` (requests in, answers out), `handshake` (INIT), `workers`
(threads for slow work) and `server` (the loop).

Knows FUSE and the interface of `unionfs.core`. Never imports the other transport.

Invariants: the Union is touched on the loop's thread only; no request leaves the loop unanswered, whatever it holds;
no open-file state, so file handles in requests are ignored.
"""
