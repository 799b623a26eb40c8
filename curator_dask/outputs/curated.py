"""Names of the folders that `curator_dask.curation` writes, by which others know its output."""

#: Rows with vectors and measures; those that pass; the table of duplicates; the new tars.
EMBEDDINGS, PASSING, DUPLICATES, SHARDS = "embeddings", "passing", "duplicates", "shards"
