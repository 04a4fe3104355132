"""Makes a recorded run again, and reports whether its pixels are identical.

A record is data here, never code.
"""
