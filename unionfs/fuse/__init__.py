"""The transports, which pass requests from the kernel to the core, and the mount itself.

Knows FUSE and the core's interface (`core.union`, `core.attrs`, `core.options`), and nothing else of the core.
The two transports, `via_pyfuse3` and `kernel`, never import each other.
"""
