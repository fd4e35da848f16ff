"""The file tools beside other programs' own: each side in a process of its own, in one run, on the same inputs.

A module a tool, with `measure(context) -> list[Figure]`.
"""
