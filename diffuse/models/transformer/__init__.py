"""Denoisers that are transformers from end to end."""
