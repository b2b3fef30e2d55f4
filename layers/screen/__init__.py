"""`layers explore` on a terminal, made with textual: widgets, keys and colours. Imported by that verb only."""
