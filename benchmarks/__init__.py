"""Measurements: the papers' claims at small scale, and speed against peers."""
