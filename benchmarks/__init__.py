"""Benchmarks: how fast the parts are, against what the machine can do. See ``benchmarks/README.md``."""
