"""Quantizers: latents to discrete codes and back, all called alike.

`quantizer(z, weights, train=...)` gives a `Quantized`; `quantizer.lookup(ids)` gives the codes of ids. Codebooks that
gradients train are parameters; those kept by moving averages live in the linen collection 'codebook', which a call
with `train=True` replaces where the caller made it mutable. Draws of training come from the rng 'dropout'. All
arithmetic is float32 at the highest precision: an id must not depend on how a device rounds its products.
"""
