"""Our own engine: the layouts against the kernel's header, bytes in and bytes out without a device, then real mounts.

`wire` writes requests as the kernel does and reads replies as it does, from the header's text alone: it shares no code
with the engine. `serving` is a child process that mounts a union and serves it with the engine.
"""
