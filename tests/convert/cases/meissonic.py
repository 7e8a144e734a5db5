from transformer_zoo.models.masked_generation.meissonic import Meissonic

SMALL = dict(grid=(4, 2), num_codes=5, vocabulary_size=7, double_depth=2, single_depth=3, width=12, num_heads=2)
SMALL |= dict(mlp_ratio=2.0, axis_widths=(2, 2, 2), text_length=3, text_width=4, pooled_width=5)
CASES = {("reference", ""): Meissonic(**SMALL), ("reference", "whole"): Meissonic(**SMALL | dict(compression=False))}
