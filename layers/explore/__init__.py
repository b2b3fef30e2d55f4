"""The data of `layers explore`: an index of the entries of each layer, the merged tree, and wasted bytes with causes.

Prints nothing.
"""
