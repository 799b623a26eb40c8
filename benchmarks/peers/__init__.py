"""What users would run instead of curator_dask, each as a small script in a virtual environment of its own."""
