"""Images from a Containerfile: read, planned, its steps executed or found in the cache.

    source lines words flags instructions stages    the language: text -> instructions -> stages that need each other;
    pure patterns ignore                                 which names of a context are meant

Raises, and neither prints nor exits.
"""
