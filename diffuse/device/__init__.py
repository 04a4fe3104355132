"""Describes the hardware, and decides which components may be resident on the device at each moment.

Every call of accelerate and every switch of torch's backends is in here. It knows nothing of prompts, files or runs.
"""
