"""Compiler flags worth a try, by platform and version of jaxlib; off unless `train.py --xla_flags=gpu` asks for them.

A compiler refuses flags that it does not know, and their names come and go: XLA dropped those that made single
collectives asynchronous once all were (openxla/xla#11422). So each stands with the versions in which it was found, and
none is set for another. They change how fast a step is, by how much only your own run can tell, and not what it
computes beyond rounding.
"""

import dataclasses
import os
import re
from collections.abc import MutableMapping

import jaxlib.version

from transformer_zoo import naming
from transformer_zoo.training.errors import UserError

VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
_NVIDIA = "https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance"
_OPENXLA = "https://openxla.org/xla/flags_guidance"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One setting.

    Attributes:
        platform: 'gpu' or 'tpu'.
        text: as the compiler takes it.
        since: the first version of jaxlib (for a TPU, with the libtpu released for it) in which it was found.
        before: the first after the last version in which it was found.
        why: what it is for.
        source: who says so.
    """

    platform: str
    text: str
    since: str
    before: str
    why: str
    source: str


FLAGS = (
    Flag(
        "gpu",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "0.10.2",
        "0.13",
        "moves collectives to where other work hides them",
        "https://docs.nvidia.com/jax-toolbox/environment-variables",
    ),
    Flag(
        "gpu",
        "--xla_gpu_enable_while_loop_double_buffering=true",
        "0.10.2",
        "0.13",
        "lets the collectives of one turn of a scan over blocks run beside the next turn",
        _NVIDIA,
    ),
    Flag(
        "gpu",
        "--xla_gpu_triton_gemm_any=true",
        "0.10.2",
        "0.13",
        "lets the autotuner take Triton for any matrix product, with what is around it fused in",
        "https://docs.jax.dev/en/latest/gpu_performance_tips.html",
    ),
    *(
        Flag("tpu", text, "0.10.2", "0.11", "together they gather the next block's parameters ahead", _OPENXLA)
        for text in (
            "--xla_tpu_enable_ici_ag_pipelining=true",
            "--xla_should_allow_loop_variant_parameter_in_chain=enabled",
            "--xla_should_add_loop_invariant_op_in_chain=enabled",
        )
    ),
    Flag(
        "tpu",
        "--xla_tpu_enable_async_all_to_all=true",
        "0.10.2",
        "0.11",
        "lets the tokens of a mixture of experts travel beside other work",
        _OPENXLA,
    ),
)


def numbers(version: str) -> tuple[int, ...]:
    """'0.10.2' as (0, 10, 2); what follows the numbers is left out."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def flags_for(platform: str, version: str) -> list[Flag]:
    """The flags of a platform that this version of jaxlib knows.

    Raises:
        UserError: no flags are known for the platform or for the version.
    """
    if platform not in VARIABLES:
        raise UserError(f"--xla_flags: {naming.unknown('platform', platform, VARIABLES)}")
    listed = [flag for flag in FLAGS if flag.platform == platform]
    found = [flag for flag in listed if numbers(flag.since) <= numbers(version) < numbers(flag.before)]
    if not found:
        ranges = ", ".join(sorted({f"from {flag.since} to before {flag.before}" for flag in listed}))
        raise UserError(
            f"--xla_flags={platform}: jaxlib {version} was not looked at, and a compiler refuses flags that it does "
            f"not know; leave the flag out, or take jaxlib {ranges}"
        )
    return found


def set_flags(platform: str, environment: MutableMapping[str, str] = os.environ) -> list[Flag]:
    """Adds a platform's flags to the environment, before anything is compiled; what is set there already stays.

    Returns:
        The flags that were added; none where `platform` is empty.

    Raises:
        UserError: see `flags_for`.
    """
    if not platform:
        return []
    variable = VARIABLES.get(platform, "")
    own = environment.get(variable, "").split()
    names = {text.partition("=")[0] for text in own}
    added = [flag for flag in flags_for(platform, jaxlib.version.__version__) if flag.text.split("=")[0] not in names]
    environment[variable] = " ".join([*own, *(flag.text for flag in added)])
    return added
