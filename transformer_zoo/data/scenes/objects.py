"""The objects of scenes as a detector takes them."""

import numpy as np

from transformer_zoo import naming

COLUMNS = {"shape": 0, "colour": 1, "size": 2}  # of the field `obj`


def add_objects(batch: dict[str, np.ndarray], seeds: np.ndarray, label: str = "shape") -> dict[str, np.ndarray]:
    """Gives `boxes` float32 [batch, 4, 4] and their `classes` int32 [batch, 4], -1 where nothing is seen.

    Args:
        batch: with the fields `boxes` and `obj` of the source.
        seeds: play no part.
        label: what is the class: 'shape' (6), 'colour' (8) or 'size' (3).

    Raises:
        ValueError: another label, or a field that is missing.
    """
    if label not in COLUMNS:
        raise naming.unknown("data.transforms.scene_objects.label:", label, COLUMNS)
    if not {"boxes", "obj"} <= batch.keys():
        raise ValueError(f"scene_objects needs 'boxes' and 'obj' in data.options.fields; there are {', '.join(batch)}")
    boxes = batch["boxes"].astype(np.float32)
    classes = np.where(boxes[..., 2] > boxes[..., 0], batch["obj"][..., COLUMNS[label]], -1)
    return batch | {"boxes": boxes, "classes": classes.astype(np.int32)}
