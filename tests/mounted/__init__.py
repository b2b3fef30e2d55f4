"""One behaviour suite over every way to mount a union, with a plain directory as control.

`checks/` holds the behaviour: small functions that act on their own directory and state the rule they prove. `subjects`
says what is checked (a plain directory, the union behind each transport, as root, as a user, in a user namespace), a
`mounted_subject` is one of them built and mounted, its `agent` runs the checks in child processes under the right
identity, and `expected` lists what a transport cannot do and why. A check that fails on the plain directory is wrong;
so each of them is proved before a union is judged by it.
"""
