"""An example of a package that adds a system, a data set, a protocol and an output format to langdepth."""
