"""Sweeps: many jobs from one command, in one process or on many, of which only those that are missing are made.

What a single run does belongs to `run`, and what compares the pictures of a sweep to `compare`.
"""
