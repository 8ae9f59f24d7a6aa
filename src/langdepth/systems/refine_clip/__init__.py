"""RefineDepthCLIP."""
