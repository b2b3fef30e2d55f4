"""The launcher: what is pure by tables, the rest in real containers, as root and as an ordinary user."""
