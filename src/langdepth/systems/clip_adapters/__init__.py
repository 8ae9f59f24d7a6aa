"""CLIP-Adapter, Eigen, coarse and refined adapter, multi-scale adapter."""
