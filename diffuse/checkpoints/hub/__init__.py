"""Repositories on the Hugging Face hub: what they have, and how their files get into its cache."""
