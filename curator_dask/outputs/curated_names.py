"""The folders of what `curator_dask.curation` writes, by which others know its output."""

#: Rows with vectors and measures; those that pass; of these those that balance concepts; the table of duplicates; the
#: new tars.
EMBEDDINGS, PASSING, BALANCED = "embeddings", "passing", "balanced"
DUPLICATES, SHARDS = "duplicates", "shards"
