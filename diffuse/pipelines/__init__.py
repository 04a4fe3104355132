"""The story of each model family, from prompt to frames.

Saving, records and moving modules between devices do not belong here.
"""
