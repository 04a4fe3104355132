"""The denoising loop, guidance, what it starts from, batches, encoded prompts and results.

It knows no family of models.
"""
