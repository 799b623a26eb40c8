"""Clusters: starting or reaching one, its workers, who is still there, and how far they are."""
