"""The checkpoint that ships with the package, and the scripts that drew its data and trained it.

Nothing else in `diffuse` imports this folder; `checkpoint/` is read as any folder of weights is.
"""
