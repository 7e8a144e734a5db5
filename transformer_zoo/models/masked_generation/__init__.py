"""Generators that fill masked tokens in parallel."""
