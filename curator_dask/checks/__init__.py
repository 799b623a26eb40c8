"""Looks at a dataset before a run: what would fail, and DALI's index files."""
