"""Vectors: their files, the one way the rest of the package reads them, and the public data sets by name."""
