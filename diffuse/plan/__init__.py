"""Predicts a request without weights: the memory of each phase, arithmetic, seconds, disk and download.

The pipelines themselves run here, on tensors without storage. It makes nothing, and reads no weight.
"""
