"""ScaleDepth."""
