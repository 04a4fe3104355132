"""GGUF files, the format of ggml: where their tensors lie, and what their blocks of few bits stand for.

Nothing here is written, and no name of a model is known.
"""
