"""Weights that `convert import` wrote, as something a run stands on: they count as a finished run's checkpoint.

So `config.requires` may name their folder where it names another run's config, and the same table takes their arrays.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from transformer_zoo.training.config import load_config

WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def is_imported(folder: str | Path) -> bool:
    """Whether a folder holds imported weights and what they are of."""
    return (Path(folder) / WEIGHTS).is_file() and (Path(folder) / CONFIG).is_file()


def required_config(spec: str) -> ConfigDict:
    """The config of what `requires` names: that of a config file, or {'model': ...} of a folder of imported weights.

    Raises:
        UserError: no such file, see `load_config`.
    """
    if not is_imported(spec):
        return load_config(spec)
    stored = json.loads((Path(spec) / CONFIG).read_text())
    fields = stored["arguments"].items()
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in fields}
    return ConfigDict({"model": {"name": stored["network"] or stored["paper"], **arguments}})


def read_imported(folder: str | Path) -> Mapping[str, np.ndarray]:
    """Arrays by the paths that a checkpoint of the network would have: 'params/model/...', 'state/model/...'."""
    from safetensors import safe_open

    arrays = {}
    with safe_open(Path(folder) / WEIGHTS, "numpy") as stored:
        collections = tuple(filter(None, (stored.metadata() or {}).get("collections", "").split(",")))
        for name in stored.keys():  # noqa: SIM118, it is no dict
            kind = "state" if name.split("/")[0] in collections else "params"
            arrays[f"{kind}/model/{name}"] = stored.get_tensor(name)
    return arrays


def imported_hash(folder: str | Path) -> str:
    """Twelve hex digits that name the exact contents of the weights."""
    with (Path(folder) / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
