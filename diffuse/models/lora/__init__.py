"""Names of families in LoRA files: which layer of which component a name means, and for which family a file was made.

Nothing here needs torch.
"""
