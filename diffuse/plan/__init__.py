"""What a request would take, found without weights: memory of each phase, arithmetic, seconds, disk and download.

The pipelines themselves run here, on tensors without storage. It makes nothing, and reads no weight.
"""
