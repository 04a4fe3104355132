"""Samplers: numbers and tensors only. One file a sampler; `noise_schedule` holds what they share."""
