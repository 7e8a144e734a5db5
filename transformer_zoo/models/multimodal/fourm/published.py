"""The papers' sets of modalities, as data.

Sequences of text share one WordPiece vocabulary of 30,000 ids: 0 padding, 3 the end, 4..203 sentinels of which masking
takes those from 5 on, 204..4203 coordinates, 4204..4283 COCO's classes.
"""

from typing import Any

WORDS = {"kind": "sequence", "vocabulary": 30_000, "end": 3, "first_sentinel": 5, "num_sentinels": 199}


def image_tokens(vocabulary: int, **options: Any) -> dict[str, Any]:
    """Ids of a tokenizer of images, on 14 x 14 places unless `options` say otherwise."""
    return {"kind": "tokens", "vocabulary": vocabulary, **options}


def global_tokens(vocabulary: int) -> dict[str, Any]:
    """Sixteen ids of a whole image, whose places mean nothing."""
    return image_tokens(vocabulary, grid=(4, 4), positions="learned")


FOURM_7: dict[str, dict[str, Any]] = {
    "rgb@224": {"kind": "pixels"},
    "caption": WORDS | {"length": 256},
    "det": WORDS | {"length": 256},
    "tok_rgb@224": image_tokens(16_384),
    "tok_depth@224": image_tokens(8_192),
    "tok_normal@224": image_tokens(8_192),
    "tok_semseg@224": image_tokens(4_096),
    "tok_clip@224": image_tokens(8_192),
}
FOURM_21: dict[str, dict[str, Any]] = FOURM_7 | {
    "t5_caption": {"kind": "embeddings", "length": 77, "width": 4_096},
    "metadata": WORDS | {"length": 40, "chunk": 2},
    "human_poses": WORDS | {"length": 275, "decoder_length": 263},
    "color_palette": WORDS | {"length": 23},
    "sam_instance": WORDS | {"length": 290},
    "tok_canny_edge@224": image_tokens(8_192),
    "tok_sam_edge@224": image_tokens(8_192),
    "tok_dinov2@224": image_tokens(8_192, grid=(16, 16)),
    "tok_imagebind@224": image_tokens(8_192, grid=(16, 16)),
    "tok_dinov2_global": global_tokens(8_192),
    "tok_imagebind_global": global_tokens(8_192),
}
TARGETS_448 = ("tok_rgb", "tok_depth", "tok_normal", "tok_semseg", "tok_clip")
# Super-resolution: everything at 224 and 448 pixels is input, tokens at 448 are predicted.
SUPER_RESOLUTION: dict[str, dict[str, Any]] = {
    **{name: options | {"output": False} for name, options in FOURM_7.items()},
    "rgb@448": {"kind": "pixels", "grid": (28, 28)},
    **{f"{name}@448": FOURM_7[f"{name}@224"] | {"grid": (28, 28)} for name in TARGETS_448},
}
SETS = {"4m7": FOURM_7, "4m21": FOURM_21, "super_resolution": SUPER_RESOLUTION}
