"""One page of what a run has made: counts, thresholds, a map, duplicates, failures, for a browser without a network."""
