"""Small helpers that know nothing of depth."""
