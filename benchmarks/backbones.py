"""Speed of the backbones, a small size of each, beside timm where it has them: python -m benchmarks.backbones --json.

Measured as in `benchmarks.step`: a training step is forward, backward and AdamW, both sides take turns, the median of
five counts. `share_of_matmul_rate` compares the work of matrix products and convolutions with large matrix products in
the same process; what is neither (norms, softmax, shifts of windows) counts against it.
"""

from collections.abc import Sequence

from benchmarks import step
from benchmarks.step import Model
from transformer_zoo.tasks.classification import Classification
from transformer_zoo.training import command

MODELS = {
    "swin_t": Model("swin", "T", Classification, "timm", "swin_tiny_patch4_window7_224"),
    "poolformer_s12": Model("metaformer", "poolformer_s12", Classification, "timm", "poolformer_s12"),
    "convformer_s18": Model("metaformer", "convformer_s18", Classification, "timm", "convformer_s18"),
    "caformer_s18": Model("metaformer", "caformer_s18", Classification, "timm", "caformer_s18"),
    "tnt_s": Model("tnt", "S", Classification, "timm", "tnt_s_patch16_224"),
    "cswin_t": Model("cswin", "T", Classification),
    "t2t_7": Model("t2t", "7", Classification),
    "rmt_t": Model("rmt", "T", Classification),
    "resformer_t": Model("resformer", "T", Classification),
    "illama_t16": Model("illama", "T16", Classification),
    "gmm_mask": Model("gmm_mask", "cifar10", Classification),
    "activator": Model("activator", "cifar10", Classification),
}


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    step.main(arguments, MODELS, ",".join(MODELS), "backbones")


if __name__ == "__main__":
    command.main(main)
