"""Tokenizers: images and clips to grids of discrete tokens and back."""
