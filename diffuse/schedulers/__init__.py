"""Samplers: one file each. They compute with numbers and tensors only, and know no models.

`noise_schedule` and `sigmas` are the mathematics that they share, `sampler` and `sigma_sampler` their base classes.
`build` makes a sampler from options, which `options` checks.
"""
