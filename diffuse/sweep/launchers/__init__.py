"""Hydra's launchers: each file says how the workers of one library are started and watched.

The tasks, the lost workers and Ctrl-C are the same for all of them, and belong to `pool`.
"""
