"""System calls that the `os` module lacks, one thin typed wrapper each, through ctypes.

A wrapper raises OSError with the errno and the name it was given. It has no idea of unions, layers or containers.
"""
