"""Small networks of every kind that a layout knows, a file a paper."""
