"""Shards as bytes: discovery, the index of a tar, reading members."""
