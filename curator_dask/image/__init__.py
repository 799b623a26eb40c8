"""Image modules of the dataset API."""
