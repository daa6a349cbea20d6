"""Next Visual Granularity generation: the method itself, in plain PyTorch."""
