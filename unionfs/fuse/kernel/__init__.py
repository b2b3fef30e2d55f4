"""Our own engine for the kernel's FUSE protocol on /dev/fuse: one message in, one answer out, as few as possible.

Rooms, from the bytes outwards: `abi` (numbers and layouts of <linux/fuse.h>), `decode` (request bytes to the arguments
of a Union verb), `encode` (what the verb returned to reply bytes), `session` (what was negotiated, counted, is
waiting), `listing` and `data` (the requests that fill a buffer), `handlers` (requests with a shape of their own),
`dispatch` (one table: opcode to decode, verb, encode), all of them without a descriptor of the device; `device` (the
descriptor), `turn` (requests in, answers out, until none is left), and who takes turns do the I/O: `handshake` (the
first exchange), `entry` (the way in), `early` (before trio is imported) and `server` (the trio loop).

Knows FUSE and `unionfs.core`'s door. Never imports the other transport.

Invariants: the Union is touched on the loop's thread only; no request leaves the loop unanswered, whatever it holds;
no open-file state, so a file handle in a request is never looked at.
"""
