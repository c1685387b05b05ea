"""How fast graphlr is, beside its peers: `python -m benchmarks --help`."""
