"""Tests of the core: branch directories prepared as text, a Union over them, no mount and no kernel in between.

`trees` writes and renders trees as text, `drivers` walks a plain directory and a Union with the same verbs, `snapshots`
makes what they show comparable, `stack` prepares branches and watches the lowers, `pair` runs the same verbs on both.
"""
