"""Weights: where they come from, and how a module gets them.

This room knows file formats and the hub, and no family of models by name.
"""
