"""System calls that the `os` module lacks, one thin typed wrapper each, through ctypes.

A wrapper raises OSError with the errno and the path it was given. It knows nothing of unions, layers or containers.
"""
