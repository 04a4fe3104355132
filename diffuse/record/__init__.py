"""The record of a run: how it is built, checked and read back, and how two of them differ.

It runs nothing; `reproduce` makes a recorded run again.
"""
