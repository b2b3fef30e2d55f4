"""The control socket, with real sockets and processes of several users."""
