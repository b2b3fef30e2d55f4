"""Build images from a Containerfile: read and plan it, execute its steps or find them in the cache.

    source lines words flags instructions stages    the language: text -> instructions -> stages that need each other;
    pure patterns ignore                                 which names of a context are meant

Raises, and neither prints nor exits.
"""
