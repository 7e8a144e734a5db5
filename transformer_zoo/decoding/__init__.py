"""Decoders of discrete tokens: masked ones that fill many places at once, and autoregressive ones."""
