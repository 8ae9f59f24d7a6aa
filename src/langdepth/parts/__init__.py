"""Building blocks shared by the systems; parts never import systems."""
