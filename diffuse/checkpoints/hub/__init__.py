"""The Hugging Face hub: which files a repository has, which are cached, and how the others are fetched."""
