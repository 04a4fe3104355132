"""The checkpoint that ships with the package, and the scripts that draw its data and train it.

Nothing else in `diffuse` imports this folder; `checkpoint/` is read as any folder of weights is.
"""
