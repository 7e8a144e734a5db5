"""ViT's claims about positions (appendix D.4; section 3.2 on inputs of other sizes)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.runs import Figures, Run, trained_variables
from transformer_zoo import zoo

LARGER = (15, 15)  # pixels; trained at (12, 12)


def distance_to_fixed(seed: int, runs: Mapping[str, Run]) -> Figures:
    """How far learned positions, and none, end from fixed ones in test accuracy."""
    fixed, learned, none = (runs[name].figures["test/accuracy"] for name in ("fixed", "learned", "none"))
    return Figures(
        (abs(learned - fixed), abs(none - fixed)),
        (runs["learned"].parameters, runs["none"].parameters),
        (runs["learned"].flops, runs["none"].flops),
    )


def resized_or_not(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Test accuracy at the larger input, with positions resized and with rows of the table by token number."""
    run = runs["learned"]
    params = trained_variables(run).params["model"]
    tokens = int(np.prod(np.array(LARGER) // run.config.model.patch_size))
    by_number = {**params, "positions": {"table": repeat_rows(params["positions"]["table"], tokens)}}
    values = accuracy_at(run, params, LARGER), accuracy_at(run, by_number, LARGER, image_size=LARGER)
    return Figures(values, (run.parameters, run.parameters), (run.flops, run.flops))


def resized_or_halved(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Test accuracy at the larger input with positions resized, and half of that at the size of training."""
    run = runs["learned"]
    value = accuracy_at(run, trained_variables(run).params["model"], LARGER)
    return Figures((value, run.figures["test/accuracy"] / 2), (run.parameters, run.parameters), (run.flops, run.flops))


def repeat_rows(table: Float[Array, "rows width"], tokens: int) -> Float[Array, "tokens width"]:
    """Row i for token i, from the start again where the table ends: positions of the wrong places."""
    return jnp.take(table, jnp.arange(tokens) % table.shape[0], axis=0)


def accuracy_at(run: Run, params: dict, size: tuple[int, int], **changed: object) -> float:
    """Test accuracy on images enlarged to `size`, of the run's network with some of its fields `changed`."""
    built = zoo.build(run.config)
    task: Any = built.task
    network = task.network.clone(**changed)

    @jax.jit
    def correct(params: dict, images: Array, labels: Array) -> Array:
        images = jax.image.resize(images, (images.shape[0], *size, images.shape[3]), "linear")
        return network.apply({"params": params}, images)[0].argmax(axis=-1) == labels

    batches = list(built.data.evaluate("test", 0))
    hits = sum((correct(params, batch["image"], batch["label"]) * batch["weight"]).sum() for batch in batches)
    return float(hits / sum(batch["weight"].sum() for batch in batches))
