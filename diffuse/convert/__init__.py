"""`diffuse convert`: writes a checkpoint from anywhere as a folder in the diffusers layout, or as one file."""
