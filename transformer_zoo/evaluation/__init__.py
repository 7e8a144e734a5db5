"""Evaluators, probes and sweeps."""
