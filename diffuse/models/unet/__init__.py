"""Denoisers of the U-Net family."""
