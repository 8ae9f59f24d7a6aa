"""CaBins."""
