"""One procedural captioned world: pictures and clips with every label exact, and a judge that needs no network.

A sample is a pure function of (seed, family, split, index): whole batches are drawn by hashing (`slots`), painted into
one buffer of texels (`canvas`), and every field is looked up from it when it is asked for. A family is one file
(`still`, `clip`); all share `palette`, `slots`, `shapes`, `canvas`, `grammar`, `fields` and `checker`.

Numbers of random slots, word ids, texel sizes and colours are the format: new ones are appended, none is renumbered.
"""
