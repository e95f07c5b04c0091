"""Public data sets and published models: names, addresses, downloads."""
