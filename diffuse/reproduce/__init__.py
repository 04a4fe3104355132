"""Makes a recorded run again, and says whether its pixels are the same.

A record is data here, never code.
"""
