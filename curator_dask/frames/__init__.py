"""Columns and Parquet: embeddings as list columns, schemas, atomic files, fingerprints."""
