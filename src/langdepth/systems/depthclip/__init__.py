"""DepthCLIP."""
