"""Networks with weights: from files of other libraries, from our own, and from runs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import naming
from transformer_zoo.convert.files import read_arrays, read_safetensors
from transformer_zoo.convert.layout import abstract_variables, detect, layout, paper_layouts
from transformer_zoo.convert.preprocessing import Preprocessing
from transformer_zoo.convert.table import Rule, flatten, import_arrays, unflatten
from transformer_zoo.training import checkpoints
from transformer_zoo.training.weights import CONFIG, WEIGHTS
from transformer_zoo.zoo.export import FORMAT, save_parameters
from transformer_zoo.zoo.index import arguments, create, network_path, paper, papers, sizes


@dataclasses.dataclass(frozen=True)
class Source:
    """Arrays by name, and what is known about them.

    Attributes:
        arrays: by name.
        ours: whether the names are our paths.
        arguments: fields of the network that were stored with them.
        preprocessing: stored with them.
        network: the name of the network in the index; '' is the paper's first.
    """

    arrays: Mapping[str, np.ndarray]
    ours: bool = False
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    network: str = ""


def load(
    key: str,
    size: str,
    file: str | Path | Sequence[str | Path],
    *,
    allow_missing: Sequence[str] = (),
    allow_unplaced: Sequence[str] = (),
    **options: Any,
) -> tuple[Any, dict[str, Any], Preprocessing | None]:
    """A paper's network, or one of `index.networks`, with weights, and the preprocessing that belongs to them.

    The layout is recognised by the names. What the arrays tell about the network (classes, pooling, ...) need not be
    given; `size` overrides it except for the image size, and `options` override both.

    Args:
        key: the paper, or the network.
        size: a published size; '' where the file and `options` say enough.
        file: .safetensors, .npz or a torch file; a folder that `convert import` wrote; a run or one of its checkpoints,
            of which the trained parameters (not their average) are taken. Several files count as one.
        allow_missing: regexes of our paths that may stay as initialised: ['head/.*'] for other classes.
        allow_unplaced: regexes of names in the file that need no place.
        **options: fields of the network.

    Returns:
        The module, its variables {'params': tree}, and the preprocessing, None where the weights come with none.

    Raises:
        ValueError: names, shapes or options that do not fit; the message names them and the nearest valid one.
    """
    network_path(key)
    files = [file] if isinstance(file, str | Path) else list(file)
    source = _read(key, Path(files[0])) if len(files) == 1 else _read_all(files)
    shown = ", ".join(map(str, files))
    stated = arguments(key, size) if size else {}
    if source.ours:
        module = create(source.network or key, "", **{**source.arguments, **stated, **options})
        prefixes: Sequence[str] = ()
        preprocessing = source.preprocessing
    else:
        chosen = layout(key, detect(key, source.arrays))
        told = chosen.arguments(chosen.strip(source.arrays), options)
        fields = {**told, **stated, **{name: told[name] for name in ("image_size",) if name in told}, **options}
        untold = [name for name in chosen.untold if name not in fields]
        if untold:
            listed = ", ".join(sizes(key)) or "none is listed"
            raise ValueError(f"{shown} does not tell {', '.join(untold)}; give a size ({listed}) or these as options")
        module = create(chosen.network or key, "", **fields)
        table, prefixes = chosen.table(module), chosen.prefixes
        allow_unplaced = [*allow_unplaced, *chosen.ignored]
        preprocessing = chosen.preprocessing(module) if chosen.preprocessing else None
    abstract = abstract_variables(key, module)
    shapes = flatten(abstract)
    if source.ours:
        table = [Rule(path, path) for path in shapes]
    try:
        found = import_arrays(
            table,
            source.arrays,
            shapes,
            prefixes=prefixes,
            allow_missing=allow_missing,
            allow_unplaced=allow_unplaced,
        )
    except ValueError as error:
        raise ValueError(f"{shown} does not fit {type(module).__name__}: {error}") from None
    arrays: dict[str, Any] = {path: jnp.asarray(array) for path, array in found.items()}
    if len(arrays) < len(shapes):
        example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), paper_layouts(key).example(module))
        arrays = flatten(jax.jit(module.init)(jax.random.key(0), *example)) | arrays
    return module, unflatten(arrays, abstract), preprocessing


def save(key: str, module: Any, variables: Any, preprocessing: Preprocessing | None, folder: str | Path) -> None:
    """Writes a network into a folder that `load` reads: weights.safetensors with our names, and config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = [field for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    values = {field.name: getattr(module, field.name) for field in fields}
    path = f"{type(module).__module__}:{type(module).__name__}"
    others = {where: name for name, where in paper(key).get("networks", {}).items()} if key in papers() else {}
    config = {
        "paper": key,
        "network": others.get(path, ""),
        "arguments": {field.name: values[field.name] for field in fields if values[field.name] != field.default},
        "preprocessing": dataclasses.asdict(preprocessing) if preprocessing else None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, default=dict))
    save_parameters(variables, folder / WEIGHTS)


def _read(key: str, path: Path) -> Source:
    """The arrays at `path`, whatever it is.

    Raises:
        ValueError: a folder that is neither a run nor written by `save`, or that holds another paper's network.
    """
    if path.is_dir() and not (path / WEIGHTS).exists():
        return _read_run(key, path)
    file = path / WEIGHTS if path.is_dir() else path
    if file.suffix == ".safetensors" and file.is_file():
        arrays, metadata = read_safetensors(file)
        if metadata.get("format") == FORMAT["format"]:
            return _with_config(key, arrays, file.parent / CONFIG)
    return Source(read_arrays(file))


def _read_all(files: Sequence[str | Path]) -> Source:
    """The arrays of several files.

    Raises:
        ValueError: a name that is in two of them.
    """
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        found = read_arrays(file)
        if twice := sorted(arrays.keys() & found.keys()):
            raise ValueError(f"{file} holds {twice[0]!r}, and so does a file before it")
        arrays |= found
    return Source(arrays)


def _with_config(key: str, arrays: Mapping[str, np.ndarray], file: Path) -> Source:
    config = json.loads(file.read_text()) if file.exists() else {}
    if config.get("paper", key) != key:
        raise ValueError(f"{file.parent} holds {config['paper']!r}, not {key!r}")
    stored = config.get("preprocessing")
    preprocessing = naming.construct(Preprocessing, stored, f"{file}: preprocessing") if stored else None
    return Source(arrays, True, config.get("arguments", {}), preprocessing, config.get("network", ""))


def _read_run(key: str, path: Path) -> Source:
    """The newest intact checkpoint of a run, or the one at `path`."""
    if not (path / checkpoints.MANIFEST).exists():
        if not (path / "checkpoints").is_dir():
            raise ValueError(f"{path} holds neither {WEIGHTS} nor checkpoints")
        path = checkpoints.newest_intact(path / "checkpoints")
    network = dict(checkpoints.read_meta(path)["config"]["model"])
    name = network.pop("name", "several networks")
    if name != key:
        raise ValueError(f"{path} is a checkpoint of {name!r}, not of {key!r}")
    prefix, device = "params/model/", jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        tuple(name.split("/")): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, leaf in checkpoints.stored_shapes(path).items()
        if name.startswith(prefix)
    }
    restored = checkpoints.restore(path, flax.traverse_util.unflatten_dict(wanted), partial=True)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(restored).items()}
    return Source({name.removeprefix("model/"): array for name, array in arrays.items()}, True, network)
