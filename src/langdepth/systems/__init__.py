"""One readable file per paper."""
