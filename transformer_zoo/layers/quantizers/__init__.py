"""Quantizers: latents to discrete codes and back, all called alike.

`quantizer(z, weights, train=...)` gives a `Quantized` for latents [..., width]; `quantizer.lookup(ids)` gives the codes
of ids; `num_codes` and `width` are fields or properties. `weights` [...] are 1 at places that count and 0 at padding,
which has no part in any mean, average or replacement; None counts all.

Codebooks that gradients train are parameters; those kept by moving averages live in the linen collection 'codebook',
which a call with `train=True` replaces where the caller made it mutable. Draws of training come from the rng 'dropout'.
All arithmetic is float32 at the highest precision: an id must not depend on how a device rounds its products.
"""
