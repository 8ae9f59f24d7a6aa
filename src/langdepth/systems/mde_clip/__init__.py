"""MDE-CLIP and RefineCLIP."""
