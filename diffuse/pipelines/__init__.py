"""One story a model family: prompt to picture."""
