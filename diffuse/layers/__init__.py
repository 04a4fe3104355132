"""Building blocks that several models share, with the state-dict keys of the published checkpoints."""
