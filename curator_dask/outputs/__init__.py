"""Writing rows: what is there, what is to be written, whole or not at all, and trying failed rows again."""
