"""Text encoders, their tokenizers, and what prepares their states for a denoiser."""
