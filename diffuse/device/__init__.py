"""Describes what there is to compute on, and decides what may be resident there when.

Every call of accelerate and every switch of torch's backends is in here. It knows nothing of prompts, files or runs.
"""
