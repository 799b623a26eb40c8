"""Looking at an output: a page that a server of this machine shows."""
