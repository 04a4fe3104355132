"""What there is to compute on, and what may be resident there when.

Every call of accelerate is in here; it knows nothing of prompts.
"""
