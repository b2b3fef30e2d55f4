"""What an explorer of layers knows: indexes of the entries of each layer, their merged tree, what is wasted and why.

Shows nothing by itself.
"""
