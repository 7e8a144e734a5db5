"""Where batches come from: sources by name, transforms, the loader."""
