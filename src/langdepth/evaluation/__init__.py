"""Scores of depth against ground truth, and what an evaluation keeps."""
