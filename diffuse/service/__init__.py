"""`diffuse encode` and `diffuse serve-text`: embeddings of prompts, for a file and for other machines.

It knows no family of models: the text encoder is opened by `run`.
"""
