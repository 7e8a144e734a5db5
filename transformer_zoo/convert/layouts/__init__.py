"""One file a paper: every layout in which its weights are stored elsewhere."""
