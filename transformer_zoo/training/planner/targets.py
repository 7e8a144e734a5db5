"""The machines a run can be planned for, by name: `v5e:16x16`, `gpu:h100x64`, `gpu:rtx4090`.

Peak rates and memory are those of `training/devices.py`; memory bandwidth is that of the same data sheets. Link
bandwidth counts one direction. On a TPU a ring along one axis of the torus uses both directions of one link: 4.5e10
bytes/s a link and direction for v4 and v5e, 9e10 for v5p and v6e (Austin et al. 2025, "How to scale your model", part
2). Eight GPUs of a node are joined by NVLink; more are joined by a network of 400 Gbit/s a GPU, as in NVIDIA's HGX
designs. GeForce cards have PCIe alone.
"""

import dataclasses
import math
import re

from transformer_zoo.naming import nearest
from transformer_zoo.training.devices import memory_bytes, peak_flops
from transformer_zoo.training.errors import UserError

NODE = 8  # GPUs joined by NVLink
NODE_NETWORK = 50e9  # bytes/s a GPU between nodes


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
        kind: as JAX names it, see `devices.py`.
        memory_bandwidth: bytes/s of the device's memory.
        link_bandwidth: bytes/s that one device can send along one ring.
        largest: devices of the largest slice or sensible cluster.
        dimensions: of the slice's torus; 0 for GPUs.
    """

    kind: str
    memory_bandwidth: float
    link_bandwidth: float
    largest: int
    dimensions: int = 0


CHIPS = {
    "v4": Chip("TPU v4", 1228e9, 2 * 4.5e10, 4096, 3),
    "v5e": Chip("TPU v5 lite", 819e9, 2 * 4.5e10, 256, 2),
    "v5p": Chip("TPU v5p", 2765e9, 2 * 9e10, 8960, 3),
    "v6e": Chip("TPU v6 lite", 1640e9, 2 * 9e10, 256, 2),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 2039e9, 300e9, 4096),
    "h100": Chip("NVIDIA H100 80GB HBM3", 3350e9, 450e9, 4096),
    "h200": Chip("NVIDIA H200", 4800e9, 450e9, 4096),
    "b200": Chip("NVIDIA B200", 8000e9, 900e9, 4096),
    "l4": Chip("NVIDIA L4", 300e9, 32e9, 8),
    "t4": Chip("Tesla T4", 320e9, 16e9, 8),
    "rtx3090": Chip("NVIDIA GeForce RTX 3090", 936e9, 32e9, 8),
    "rtx4090": Chip("NVIDIA GeForce RTX 4090", 1008e9, 32e9, 8),
    "rtx5090": Chip("NVIDIA GeForce RTX 5090", 1792e9, 64e9, 8),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to plan for.

    Attributes:
        name: as the user wrote it, without 'search:'.
        chip: its device.
        devices: how many.
        topology: as libtpu names the slice, 'v5e:16x16'; '' for GPUs.
    """

    name: str
    chip: Chip
    devices: int
    topology: str = ""

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s of one device."""
        rate = peak_flops(self.chip.kind)
        assert rate is not None, self.chip.kind
        return rate

    @property
    def memory(self) -> int:
        """Nominal bytes of one device."""
        size = memory_bytes(self.chip.kind)
        assert size is not None, self.chip.kind
        return size

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s that one device can send to the rest of its ring."""
        between_nodes = not self.topology and self.devices > NODE
        return min(self.chip.link_bandwidth, NODE_NETWORK) if between_nodes else self.chip.link_bandwidth


def parse_target(text: str) -> Target:
    """The machine that a name stands for.

    Raises:
        UserError: a name of another form, an unknown chip (with the nearest), a slice of another shape.
    """
    if text.startswith("gpu:"):
        name, _, count = text.removeprefix("gpu:").partition("x") if text[4:5] != "r" else _split_rtx(text)
        chip = _chip(name, [key for key, chip in CHIPS.items() if not chip.dimensions], text)
        if count and not (count.isdigit() and 0 < int(count) <= chip.largest):
            raise UserError(f"--plan={text}: {count!r} is no number of devices between 1 and {chip.largest}")
        return Target(text, chip, int(count or 1))
    name, _, shape = text.partition(":")
    chip = _chip(name, [key for key, chip in CHIPS.items() if chip.dimensions], text)
    if not re.fullmatch(r"\d+(x\d+)*", shape) or len(shape.split("x")) != chip.dimensions:
        example = "x".join(["4"] * chip.dimensions)
        raise UserError(f"--plan={text}: a slice of {name} has {chip.dimensions} sides, as in {name}:{example}")
    devices = math.prod(int(side) for side in shape.split("x"))
    if not 0 < devices <= chip.largest:
        raise UserError(f"--plan={text}: {devices} devices, but a slice of {name} has between 1 and {chip.largest}")
    return Target(text, chip, devices, text)


def _split_rtx(text: str) -> tuple[str, str, str]:
    """'gpu:rtx4090x2' has an x in its name."""
    name, times, count = text.removeprefix("gpu:").removeprefix("rtx").partition("x")
    return f"rtx{name}", times, count


def _chip(name: str, names: list[str], text: str) -> Chip:
    if name not in names:
        near = nearest(name, names)
        raise UserError(
            f"--plan={text}: {name!r} is unknown; did you mean {near!r}? There are {', '.join(names)}. Write "
            "v5e:16x16, gpu:h100x64 or gpu:rtx4090, and search: in front to try settings"
        )
    return CHIPS[name]
