"""COMMIT where the golden file does not reach: what is shown, kept and judged while clips are made."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.masking.regions import REGIONS, condition_clip, region
from transformer_zoo.models.masked_generation.magvit import MAGVIT, CommitTokens, commit
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks.masked_tokens import Sampling

KEY = jax.random.key(0)
NETWORK = MAGVIT(grid=(2, 2, 2), num_codes=4, num_classes=3, depth=1, width=8, num_heads=2, dropout_rate=0.0)
TASKS = ("frame_prediction", "full_generation", "outpainting_v")


class Means(nn.Module):
    """Ids 0 to 3 of blocks of 2 x 2 x 2 pixels: their mean, in quarters."""

    input_shape = (4, 4, 4, 1)
    grid = (2, 2, 2)
    codebook_size = 4
    pixel_range = (0.0, 1.0)

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def __call__(self, pixels, *, train=False):
        return self.detokenize(self.tokenize(pixels)), {}

    def tokenize(self, pixels):
        blocks = pixels.reshape(-1, 2, 2, 2, 2, 2, 2).mean(axis=(2, 4, 6))
        return jnp.clip((blocks * 4 * self.scale).astype(jnp.int32), 0, 3)

    def detokenize(self, ids):
        values = (ids + 0.5) / 4 / self.scale
        return values.repeat(2, 1).repeat(2, 2).repeat(2, 3)[..., None]


def task(**options):
    options = dict(tasks=TASKS, sampling=Sampling(steps=3)) | options
    return CommitTokens(**dict(network=NETWORK, tokenizer=Means()) | options)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(task().init, KEY).params
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    return Variables(params, {}, {"tokenizer": {"params": {"scale": jnp.float32(1)}, "state": {}}})


def batch():
    video = np.random.default_rng(1).random((3, 4, 4, 4, 1)).astype(np.float32)
    return {"video": jnp.asarray(video), "label": jnp.arange(3)}


@pytest.mark.parametrize("name", REGIONS)
def test_what_is_given_stays_and_gaps_hold_nothing_else_of_the_clip(name):
    clip = jnp.asarray(np.random.default_rng(2).random((2, 8, 8, 8, 1)).astype(np.float32)) + 1
    given = region(name, (8, 8, 8), 2)
    filled = np.asarray(condition_clip(clip, name, 2))
    kept = np.broadcast_to(given[None, ..., None], clip.shape)
    assert np.array_equal(filled[kept], np.asarray(clip)[kept])
    changed = condition_clip(jnp.where(kept, clip, 7.0), name, 2)
    assert np.array_equal(filled, changed)


def test_hidden_tokens_show_the_condition_where_there_is_one_and_all_are_predicted():
    ids, condition = jnp.full((2, 2, 2, 2), 1), jnp.full((2, 2, 2, 2), 2)
    given = jnp.zeros((1, 2, 1, 1), bool).at[:, 0].set(True)
    scores = jax.random.uniform(KEY, ids.shape)
    found = commit(ids, condition, given, scores, 0.5, 9)
    assert found["hidden"].sum(axis=(1, 2, 3)).tolist() == [4, 4] and (found["weights"] == 1).all()
    shown, hidden = np.asarray(found["shown"]), np.asarray(found["hidden"])
    assert (
        (shown[~hidden] == 1).all()
        and (shown[:, 0][hidden[:, 0]] == 2).all()
        and (shown[:, 1][hidden[:, 1]] == 9).all()
    )
    fixed = commit(ids, condition, given, scores, 0.5, 9, "fixed")
    assert not fixed["hidden"][:, 0].any() and fixed["hidden"].sum(axis=(1, 2, 3)).tolist() == [2, 2]
    assert np.array_equal(fixed["weights"][:, 1], np.ones((2, 2, 2))) and not fixed["weights"][:, 0].any()
    assert (commit(ids, condition, given, scores, 0.5, 9, "fixed_condition")["shown"][:, 0] == 2).all()
    with pytest.raises(ValueError, match="condition_mode 'comit' is unknown; did you mean 'commit'"):
        commit(ids, condition, given, scores, 0.5, 9, "comit")


def test_the_task_and_the_class_stand_in_front(variables):
    ids, params = jnp.zeros((3, 2, 2, 2), jnp.int32), variables.params["model"]
    logits = [NETWORK.apply({"params": params}, ids, jnp.arange(3), which)[0] for which in (-3, -4)]
    assert not np.allclose(logits[0], logits[1])
    alone = NETWORK.clone(multi_task=False)
    assert alone.vocabulary_size == 4 + 4 + 1 and NETWORK.vocabulary_size == 4 + 4 + 16 and NETWORK.mask_id == 23


def test_every_task_trains_the_same_network_and_gives_finite_figures(variables):
    loss = jax.jit(lambda key: task().loss(variables, batch(), Context(key, jnp.int32(0)))[0])
    values = [float(loss(jax.random.key(seed))) for seed in range(6)]
    assert np.isfinite(values).all() and len(set(values)) == 6
    judge = task().evaluators()[""]
    arrays = jax.device_get(jax.jit(judge.compute)(variables, batch(), Context(KEY, jnp.int32(0), train=False)))
    state = judge.update(None, arrays, {"weight": np.array([1.0, 1.0, 0.0])})
    figures = judge.result(judge.update(state, arrays, {"weight": np.ones(3)})).metrics
    assert set(figures) == {f"{name}_error{kind}" for name in TASKS for kind in ("", "_ceiling", "_given")}
    errors = np.asarray(jnp.square(arrays["frame_prediction"] - batch()["video"])[:, 1:].mean(axis=(1, 2, 3, 4)))
    assert figures["frame_prediction_error"] == pytest.approx((errors[0] * 2 + errors[1] * 2 + errors[2]) / 5, rel=1e-5)


def test_fixed_conditions_are_never_changed_and_commit_may_refine_them(variables):
    clips, classes = batch()["video"], jnp.arange(3)
    fixed = task(condition_mode="fixed_condition")
    condition = fixed.tokenize_condition(variables, clips, "frame_prediction")
    made = fixed.make(variables, clips, classes, "frame_prediction", KEY)
    assert np.array_equal(made[:, 0], condition[:, 0]) and (made < 4).all()
    refined = task().make(variables, clips, classes, "frame_prediction", KEY)
    assert not np.array_equal(refined[:, 0], condition[:, 0])


@pytest.mark.parametrize("mode", ["commit", "prefix"])
def test_guidance_moves_clips_away_from_those_of_no_class(variables, mode):
    network = NETWORK.clone(prefix_condition=mode == "prefix")
    sampling = Sampling(steps=1, temperature=0.0, guidance_scale=1e4)
    guided = task(network=network, condition_mode=mode, sampling=sampling)
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), jax.eval_shape(guided.init, KEY).params
    )
    clips, hidden = batch()["video"], jnp.full((3, 2, 2, 2), network.mask_id)
    made = guided.make(variables.replace(params=params), clips, jnp.arange(3), "full_generation", KEY)
    with_it, without_it = (
        network.apply({"params": params["model"]}, hidden, classes)[0]
        for classes in (jnp.arange(3), jnp.full(3, network.null_condition))
    )
    assert np.array_equal(made, (without_it + 1e4 * (with_it - without_it)).argmax(axis=-1))
    assert not np.array_equal(made, with_it.argmax(axis=-1)), "the same without guidance: this test says nothing"


def test_a_condition_in_front_is_no_part_of_the_sequence_and_decides_what_is_made(variables):
    ids, condition = jnp.full((1, 2, 2, 2), 1), jnp.full((1, 2, 2, 2), 2)
    given = jnp.zeros((1, 2, 1, 1), bool).at[:, 0].set(True)
    parts = commit(ids, condition, given, jax.random.uniform(KEY, ids.shape), 1.0, 9, "prefix")
    assert (parts["shown"] == 9).all() and (parts["weights"] == 1).all() and not parts["conditions"].any()

    prefixed = task(network=NETWORK.clone(prefix_condition=True), condition_mode="prefix")
    shapes = jax.eval_shape(prefixed.init, KEY).params
    rng = np.random.default_rng(3)
    random = variables.replace(params=jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))
    clips, classes = batch()["video"], jnp.arange(3)
    make = jax.jit(lambda clips: prefixed.make(random, clips, classes, "frame_prediction", KEY))
    made = make(clips)
    assert not np.array_equal(made, make(clips.at[:, 0].set(1 - clips[:, 0])))
    assert np.array_equal(made, make(clips.at[:, 1:].set(1 - clips[:, 1:]))), "frames that are not given were looked at"


def test_tasks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="task 'frame_predicton' is unknown; did you mean 'frame_prediction'"):
        task(tasks=("frame_predicton",))
    with pytest.raises(ValueError, match="frame_interpolation with 1 frames at an end leaves none of 2"):
        task(tasks=("frame_interpolation",))
    with pytest.raises(ValueError, match=r"task\.condition_mode is 'prefix', but model\.prefix_condition is False"):
        task(condition_mode="prefix")
    with pytest.raises(ValueError, match=r"model\.multi_task is off"):
        task(network=NETWORK.clone(multi_task=False))
