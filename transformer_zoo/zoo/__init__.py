"""The index of papers, and the one place that turns names into objects."""
