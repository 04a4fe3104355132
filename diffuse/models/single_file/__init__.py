"""Single files in the layout of the first implementations (LDM, SGM): what models are in them, under whose keys.

A description is made of shapes and of the file's own metadata; no weight is read. Nothing here needs torch.
"""
