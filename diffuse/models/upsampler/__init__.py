"""Models that make latents larger, or give them more frames."""
