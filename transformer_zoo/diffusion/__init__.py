"""Diffusion: processes and solvers as pure functions."""
