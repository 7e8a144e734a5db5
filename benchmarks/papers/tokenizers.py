"""Claims of tokenizers that need more than the figures a run reports."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.runs import Figures, Run, trained_variables
from transformer_zoo import zoo
from transformer_zoo.models.tokenizers.magvit import inflate_images
from transformer_zoo.training.config import load_config

CLIPS = "configs/magvit.py:tokenizer_tiny"


def nine_tenths_of_colours(seed: int, runs: Mapping[str, Run]) -> Figures:
    """What the checker reads of colours from reconstructions, and 0.9 times what it reads from the originals."""
    (run,) = runs.values()
    read, ceiling = run.figures["test/scenes_colour"], 0.9 * run.figures["test/scenes_colour_of_originals"]
    return Figures((read, ceiling), (run.parameters, 0), (run.flops, 0))


def gain_of_large_vocabularies(seed: int, runs: Mapping[str, Run]) -> Figures:
    """By how many dB objects come back better with the large vocabulary, without lookup and with a table."""
    gains = []
    for kind in ("free", "table"):
        small, large = (
            runs[f"{kind}_{size}"].figures["test/reconstruction_object_psnr"] for size in ("small", "large")
        )
        gains.append(large - small)
    pair = [runs["free_large"], runs["table_large"]]
    return Figures((gains[0], gains[1]), (pair[0].parameters, pair[1].parameters), (pair[0].flops, pair[1].flops))


def inflated_or_random(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Error on test clips of a tokenizer inflated in the middle taps from images, and of a random one."""
    return _starts(seed, runs["images"], "central", "random")


def central_or_average(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Error on test clips of a tokenizer inflated in the middle taps from images, and in all taps alike."""
    return _starts(seed, runs["images"], "central", "average")


def _starts(seed: int, run: Run, *how: str) -> Figures:
    images = trained_variables(run).params["model"]
    model = run.config.model
    changed = {f"model.{name}": getattr(model, name) for name in ("patch", "width", "multipliers", "levels")}
    built = zoo.build(load_config(CLIPS, changed | {"seed": seed, "model.encoder_blocks": model.num_blocks,
                                                    "model.decoder_blocks": model.num_blocks}))  # fmt: skip
    task: Any = built.task
    fresh = jax.jit(task.init)(jax.random.key(seed)).params["model"]

    @jax.jit
    def errors(params: Any, clips: Array) -> Array:
        reconstruction, _ = task.network.apply({"params": params}, clips)
        return task.pixel_errors(clips, reconstruction).reshape(len(clips), -1).mean(axis=1)

    means = []
    for one in how:
        params = fresh if one == "random" else inflate_images(images, fresh, how=one)
        total, count = 0.0, 0.0
        for batch in built.data.evaluate("test", 4):
            total += float((np.asarray(errors(params, jnp.asarray(batch["video"]))) * batch["weight"]).sum())
            count += float(batch["weight"].sum())
        means.append(total / count)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(fresh))
    return Figures((means[0], means[1]), (parameters, parameters), (run.flops, run.flops))
