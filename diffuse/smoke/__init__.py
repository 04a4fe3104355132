"""Runs every family and every sampler at its tiniest, in seconds, and checks the results: `diffuse experiment=smoke`.

It makes its own checkpoints and requests. It knows models only to draw weights for them.
"""
