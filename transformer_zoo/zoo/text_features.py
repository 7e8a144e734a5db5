r"""Features of a folder's captions by T5 or CLIP, computed once for the generators that read them.

    python -m transformer_zoo.zoo.text_features /data/clips --kind=clips --encoder=t5 --weights=t5-v1_1-xxl/ \
        --tokenizer=t5-v1_1-xxl/tokenizer.json --to=/data/clips_t5
    python -m transformer_zoo.zoo.text_features /data/pictures --encoder=clip_text --size=H14 \
        --weights=open_clip_model.safetensors --tokenizer=tokenizer.json --to=/data/pictures_clip

Captions stand as text files beside images or clips, or in captions.jsonl, as the source `folder` reads pairs. A run
then takes them with --config.data.options.features=DIR: from T5 the field `caption` (Phenaki), from CLIP `text` and
`pooled` (Meissonic).
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_zoo.data import caption_features
from transformer_zoo.data.folder import KINDS, Folder
from transformer_zoo.training import command
from transformer_zoo.training.errors import UserError
from transformer_zoo.zoo.load import load

# Fields of the data by the encoders' outputs: as the generators of the papers call them.
FIELDS = {"t5": {"words": "caption"}, "clip_text": {"words": "text", "pooled": "pooled"}}
SPLITS = ("train", "val", "test")


def captions(folder: str, kind: str) -> dict[str, str]:
    """Caption by record, of all splits.

    Raises:
        ValueError: a folder without records, or a record without a caption.
    """
    return {record: text for split in SPLITS for record, text in Folder(folder, split, kind).captions()}


def encoded(
    network: Any, variables: Any, ids: np.ndarray, fields: dict[str, str], dtype: str, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Features of rows of ids, a batch at a time, by the names that the data gives them."""
    encode = jax.jit(lambda variables, ids: network.apply(variables, ids, method="text_features"))
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        padded = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)), mode="edge")  # so that one shape is compiled
        found = jax.device_get(encode(variables, padded))
        yield {fields[name]: values[: len(rows)].astype(dtype) for name, values in found.items()}


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="images or clips with captions")
    parser.add_argument("--kind", default="pairs", choices=KINDS, help="what the folder holds")
    parser.add_argument("--encoder", required=True, choices=sorted(FIELDS))
    parser.add_argument("--size", default="", help="a published size, where the weights do not tell it all")
    parser.add_argument("--weights", required=True, help="a file, or a folder that convert import wrote")
    parser.add_argument("--tokenizer", required=True, help="the encoder's tokenizer.json")
    parser.add_argument("--to", required=True, help="folder to write")
    parser.add_argument(
        "--length", type=int, default=0, help="tokens of a caption; default 128 for t5, 77 for clip_text"
    )
    parser.add_argument(
        "--pad", type=int, default=-1, help="id behind a caption's end; default 0, of clip_text the end"
    )
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"), help="of what is written")
    parser.add_argument("--batch_size", type=int, default=32)
    flags = parser.parse_args(arguments)
    target = Path(flags.to).expanduser()
    try:
        if target.exists():
            raise ValueError(f"--to={flags.to} is there already; name another folder or remove it")
        texts = captions(flags.folder, flags.kind)
        network, variables, _ = load(flags.encoder, flags.size, flags.weights)
        length, pad = flags.length or network.length, network.pad if flags.pad < 0 else flags.pad
        ids = caption_features.token_ids(flags.tokenizer, list(texts.values()), length, pad)
        if ids.max() >= network.vocabulary_size:
            raise ValueError(
                f"{flags.tokenizer} gives the id {ids.max()}, but the encoder knows {network.vocabulary_size}: they do "
                "not belong together"
            )
        batches = encoded(network, variables, ids, FIELDS[flags.encoder], flags.dtype, flags.batch_size)
        about = {"encoder": flags.encoder, "weights": flags.weights, "tokenizer": flags.tokenizer, "length": length}
        caption_features.write(target, list(texts), batches, about)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"{len(texts)} captions in {target}; train on them with --config.data.options.features={target}")


if __name__ == "__main__":
    command.main(main)
