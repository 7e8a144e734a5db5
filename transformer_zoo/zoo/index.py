"""The index: one TOML file a paper in `papers/`, read without importing any model.

A file holds the paper's names (`key`, `title`, `arxiv`, `family`, `status`, ...), where its network stands (`network`,
'package.module:Class'), its own tasks if it has any, and a table of published sizes: the network's arguments beside the
published figures and those that `python -m transformer_zoo.zoo --recount` computes. A paper of several networks names
the others in `networks`, and a size of one of them says so in its field `network`. `networks.toml` lists published
networks that no paper here adds.
"""

import functools
import tomllib
from importlib import resources
from typing import Any

from ml_collections import ConfigDict

from transformer_zoo import naming

# Networks that are no paper's own, by the name that a config gives.
NETWORKS = {
    "stylegan_discriminator": "transformer_zoo.layers.discriminators:StyleGANDiscriminator",
    "patch_discriminator": "transformer_zoo.layers.discriminators:PatchDiscriminator",
}


@functools.cache
def papers() -> dict[str, dict[str, Any]]:
    """Every paper's file as a dict, by key, in alphabetical order."""
    found = {}
    for file in sorted(resources.files("transformer_zoo.zoo").joinpath("papers").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            entry = tomllib.loads(file.read_text())
            found[entry["key"]] = entry
    return found


@functools.cache
def networks() -> dict[str, dict[str, Any]]:
    """The entries of `networks.toml`, by key: published networks whose weights come by path."""
    return tomllib.loads(resources.files("transformer_zoo.zoo").joinpath("networks.toml").read_text())


def paper(key: str) -> dict[str, Any]:
    """One paper's entry; raises ValueError naming the nearest key."""
    if key not in papers():
        raise naming.unknown("paper", key, papers())
    return papers()[key]


def network_path(name: str) -> str:
    """'package.module:Class' of a network by its name in a config: a paper's key, or the name of a further network.

    Raises:
        ValueError: no such name; the nearest is given.
    """
    known = NETWORKS | {key: entry["network"] for key, entry in networks().items()}
    known |= {name: path for entry in papers().values() for name, path in entry.get("networks", {}).items()}
    if name not in known and name not in papers():
        raise naming.unknown("paper", name, [*papers(), *known])
    return known[name] if name in known else papers()[name]["network"]


def sizes(key: str) -> dict[str, dict[str, Any]]:
    """The published sizes of a paper's networks, or of one of `networks`, by variant."""
    return networks()[key]["sizes"] if key in networks() else paper(key)["sizes"]


def arguments(key: str, size: str) -> dict[str, Any]:
    """The network's arguments at one size; raises ValueError naming the nearest size."""
    if size not in sizes(key):
        raise naming.unknown(f"size of {key!r}:", size, sizes(key))
    return dict(sizes(key)[size]["arguments"])


def network_name(key: str, size: str = "") -> str:
    """The name in configs of the network that a size is one of."""
    return sizes(key)[size].get("network", key) if size else key


def model_config(key: str, size: str = "", **options: Any) -> ConfigDict:
    """`config.model` for a paper's network: its name, the arguments of `size`, and `options` over them.

    `key` is a paper's, or without a size the name of any network.
    """
    network_path(key)
    values = (arguments(key, size) if size else {}) | options
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return ConfigDict({"name": network_name(key, size)} | values)


def create(key: str, size: str = "", **options: Any) -> Any:
    """A paper's network as a linen module, at a published size, with any of its fields changed by name.

    >>> create("vit", "S16", num_classes=10).width
    384

    Raises:
        ValueError: an unknown paper, size or field (the nearest is named), or a value of the wrong type.
    """
    values = (arguments(key, size) if size else {}) | options
    return naming.construct(naming.load(network_path(network_name(key, size))), values, f"{key}")
