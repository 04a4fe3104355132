"""Files that PyTorch wrote: pickles of weights, and TorchScript archives. They are read without running any of them."""
