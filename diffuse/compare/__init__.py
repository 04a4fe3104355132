"""Compares many runs: contact sheets, a table, plots, and one page to look through all of it.

It reads finished files and the tracking store, and generates nothing. For files and folders it imports neither torch
nor MLflow.
"""
