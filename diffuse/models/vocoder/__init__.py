"""Vocoders: from mel spectrograms to waveforms."""
