"""Live parity with torch libraries; needs the extra `parity` and is no part of the default run.

python -m pytest -o addopts='' --jaxtyping-packages=transformer_zoo,beartype.beartype tests/parity
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # built for another torch: its operators are missing, which timm does not need, but their names
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.set_num_threads(1)
