"""The command line: one module for each verb, with its parser and its output; the only package that prints and exits.

Shared by verbs: arguments and the modules *_flags (parsers); aliases (`container ls`); each (several names); output,
progress (printing); signals (names); errors (lines and exit codes).
"""
