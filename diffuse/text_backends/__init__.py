"""Embeddings of prompts from elsewhere than the model's own text encoder: from a file, a service, or noise for tests.

It knows the forms in which they travel. It knows no family of models, and no text encoder.
"""
