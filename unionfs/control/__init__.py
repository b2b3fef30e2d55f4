"""The control socket of a mounted union: statistics, traces, activity, branches, upgrades. Servers and clients.

Knows sockets and JSON. Does not know the transport's protocol, or how an answer is displayed.
"""
