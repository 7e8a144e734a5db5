"""What accelerators can do at best: dense bfloat16 FLOP/s and memory, by the name JAX gives a device.

GPU figures are those of NVIDIA's data sheets (A100, H100, H200, GH200, B200, L4, L40, L40S, A10, A10G, V100, T4) and
architecture white papers (GA102 for the RTX 3090 and A6000, Ada for the RTX 4090, Blackwell for the RTX 5090), always
without structured sparsity and, for GeForce cards, with float32 accumulation. V100 and T4 have no bfloat16 units:
theirs is the float16 rate. TPU figures are those of Google Cloud's system architecture pages; a JAX device is a whole
chip, but half a chip (one core) for v2, v3 and 7x. Memory is the nominal capacity; a driver keeps a little of it.
"""

import re
from collections.abc import Iterable

# (pattern of the whole `device_kind`, dense bf16 FLOP/s, memory in GiB). Whole names only: a slice of a card
# ("... MIG 1g.10gb") or a mobile one ("... Laptop GPU") is another device.
_DEVICES: tuple[tuple[str, float, int], ...] = (
    (r"NVIDIA B200", 2250e12, 180),
    (r"NVIDIA GH200 480GB", 989e12, 96),
    (r"NVIDIA H200", 989e12, 141),
    (r"NVIDIA H200 NVL", 835e12, 141),
    (r"NVIDIA H100 80GB HBM3", 989e12, 80),
    (r"NVIDIA H100 PCIe", 756e12, 80),
    (r"NVIDIA H100 NVL", 835e12, 94),
    (r"(NVIDIA )?A100-(SXM4|PCIE)-40GB", 312e12, 40),
    (r"(NVIDIA )?A100(-SXM4-80GB| 80GB PCIe)", 312e12, 80),
    (r"NVIDIA L40S", 362e12, 48),
    (r"NVIDIA L40", 181e12, 48),
    (r"NVIDIA L4", 121e12, 24),
    (r"NVIDIA A10", 125e12, 24),
    (r"NVIDIA A10G", 70e12, 24),
    (r"NVIDIA RTX A6000", 154.8e12, 48),
    (r"NVIDIA GeForce RTX 3090", 71e12, 24),
    (r"NVIDIA GeForce RTX 4090", 165.2e12, 24),
    (r"NVIDIA GeForce RTX 5090", 209.5e12, 32),
    (r"Tesla V100-SXM2-16GB", 125e12, 16),
    (r"Tesla V100-SXM[23]-32GB", 125e12, 32),
    (r"Tesla V100-PCIE-16GB", 112e12, 16),
    (r"Tesla V100-PCIE-32GB", 112e12, 32),
    (r"Tesla T4", 65e12, 16),
    (r"TPU v2", 45e12 / 2, 8),
    (r"TPU v3", 123e12 / 2, 16),
    (r"TPU v4", 275e12, 32),
    (r"TPU v5( lite|e)", 197e12, 16),
    (r"TPU v5p?", 459e12, 95),
    (r"TPU v6( lite|e)", 918e12, 32),
    (r"TPU7x", 2307e12 / 2, 96),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one JAX device, or None where no data sheet is known (CPUs, slices of a card)."""
    for pattern, peak, _ in _DEVICES:
        if re.fullmatch(pattern, device_kind):
            return peak
    return None


def memory_bytes(device_kind: str) -> int | None:
    """Nominal memory of one JAX device in bytes, or None where it is not known."""
    for pattern, _, gibibytes in _DEVICES:
        if re.fullmatch(pattern, device_kind):
            return gibibytes * 2**30
    return None


def total_peak_flops(device_kinds: Iterable[str]) -> float | None:
    """Summed peak of the devices, or None if one of them is unknown: a utilisation is measured or left out."""
    peaks = [peak_flops(kind) for kind in device_kinds]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None
