"""Blocks that many papers share, each written once."""
