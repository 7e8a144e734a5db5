"""MAE's claims about what is predicted, and what it costs to leave hidden patches out of the encoder (section 3)."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.runs import Figures, Run, trained_variables
from transformer_zoo import zoo
from transformer_zoo.layers.patches import patchify
from transformer_zoo.layers.positions import grid_positions
from transformer_zoo.masking.random import num_kept, random_mask
from transformer_zoo.training.flops import count_flops


def prediction_or_copy(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Mean squared error of hidden test patches: the network's, and that of copying the nearest visible patch."""
    run = runs["pretrain"]
    built = zoo.build(run.config)
    task: Any = built.task
    params = trained_variables(run).params["model"]

    @jax.jit
    def errors(images: Array, key: Array) -> tuple[Array, Array]:
        mask = task._mask(key, images)
        patches = patchify(images, task.network.patch_size)
        guesses = (
            task.network.apply({"params": params}, images, mask)[0],
            jnp.take_along_axis(patches, nearest_visible(mask.hidden, task.network.grid)[:, :, None], axis=1),
        )
        hidden = [(jnp.square(guess - patches).mean(axis=-1) * mask.hidden).sum(axis=1) for guess in guesses]
        return hidden[0] / mask.hidden.sum(axis=1), hidden[1] / mask.hidden.sum(axis=1)

    sums, count = np.zeros(2), 0.0
    for number, batch in enumerate(built.data.evaluate("test", 0)):
        found = errors(batch["image"], jax.random.fold_in(jax.random.key(seed), number))
        sums += [(np.asarray(error) * batch["weight"]).sum() for error in found]
        count += batch["weight"].sum()
    network, copy = sums / count
    return Figures((float(network), float(copy)), (run.parameters, 0), (run.flops, 0))


def nearest_visible(hidden: Float[Array, "batch tokens"], grid: tuple[int, int]) -> Int[Array, "batch tokens"]:
    """For every token the visible one that is nearest on the grid, the earlier of two as near; itself if visible."""
    places = grid_positions(grid)
    distances = jnp.asarray(np.square(places[:, None] - places[None]).sum(axis=-1))
    return jnp.argmin(jnp.where(hidden[:, None, :] > 0, jnp.inf, distances), axis=-1)


def flops_of_encoders(seed: int, runs: Mapping[str, Run]) -> Figures:
    """FLOPs of loss and gradient of the encoder of ViT-B/16 and one image, on a quarter of its tokens and on all."""
    costs = []
    for mask_ratio in (0.75, 0.0):
        step, arguments = encoder_step(mask_ratio, 1, depth=12)
        costs.append(float(count_flops(step, *arguments).total))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(arguments[0]))
    return Figures((costs[0], costs[1]), (parameters, parameters), (costs[0], costs[1]))


def seconds_of_encoders(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Median wall time of loss and gradient of two blocks of ViT-B/16 and eight images, timed in turn."""
    calls, flops = [], []
    for mask_ratio in (0.75, 0.0):
        step, abstract = encoder_step(mask_ratio, 8, depth=2, unroll=2)
        keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(abstract[0]))))
        params = jax.tree.map(lambda leaf, keys=keys: 0.02 * jax.random.normal(next(keys), leaf.shape), abstract[0])
        images = jax.random.normal(jax.random.key(seed), abstract[1].shape)
        keep = random_mask(jax.random.key(seed), 8, 196, mask_ratio).keep
        calls.append(functools.partial(jax.jit(step), params, images, keep))
        flops.append(float(count_flops(step, *abstract).total))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    seconds = np.zeros((6, 2))
    for turn, which in np.ndindex(*seconds.shape):
        start = time.perf_counter()
        jax.block_until_ready(calls[which]())
        seconds[turn, which] = time.perf_counter() - start
    medians = np.median(seconds[1:], axis=0)  # the first one compiles
    return Figures((float(medians[0]), float(medians[1])), (parameters, parameters), (flops[0], flops[1]))


def encoder_step(mask_ratio: float, batch: int, **changed: int) -> tuple[Callable[..., Any], tuple]:
    """Loss and gradient of the encoder of ViT-B/16 on the visible tokens, and the shapes of its arguments.

    With ratio 0 it sees as many tokens as an encoder that is fed with mask tokens, and costs as much.
    """
    network = zoo.create("mae", "B16", **changed)

    def encode(module: Any, images: Array, keep: Array) -> Array:
        return module.encoder(images, keep)[0]

    def step(params: dict, images: Array, keep: Array) -> Any:
        def loss(params: dict) -> Array:
            return jnp.square(network.apply({"params": params}, images, keep, method=encode)).mean()

        return jax.value_and_grad(loss)(params)

    rows, columns = network.grid
    images = jax.ShapeDtypeStruct((batch, *network.image_size, network.channels), jnp.float32)
    keep = jax.ShapeDtypeStruct((batch, num_kept(rows * columns, mask_ratio)), jnp.int32)
    init = functools.partial(network.init, method=encode)
    params = jax.eval_shape(init, jax.random.key(0), images, keep)["params"]
    return step, (params, images, keep)
