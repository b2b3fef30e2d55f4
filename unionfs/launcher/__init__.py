"""A thin container launcher: it runs a process in a root filesystem.

A frozen spec becomes a plan, a plan is an ordered list of steps, a step can describe and execute itself. The launcher
receives a path to a root filesystem and does not know that it is a union, nor what an image is.
"""
