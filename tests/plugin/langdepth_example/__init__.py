"""An example of a package that adds a system, a data set and a protocol to langdepth."""
