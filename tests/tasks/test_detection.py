"""The task of detection: its loss, average precision counted by hand, blind guesses, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.data.scenes import objects, source
from transformer_zoo.layers.detection import DetectionHead
from transformer_zoo.task import Context, Variables
from transformer_zoo.tasks import average_precision as precision
from transformer_zoo.tasks.detection import AveragePrecision, Detection
from transformer_zoo.training.sharding import path_of

BOXES = np.array([[[1, 2, 9, 8], [-1, -1, -1, -1]], [[4, 0, 12, 16], [0, 0, 6, 6]]], np.float32)
CLASSES = np.array([[2, -1], [0, 1]], np.int32)


class Network(nn.Module):
    num_classes: int = 3
    image_size: tuple[int, int] = (16, 16)
    channels: int = 3

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(8, (2, 2), 2, name="patches")(images)
        return DetectionHead(self.num_classes, tower_depth=1, name="head")(x, images.shape[1:3]), {}


def task_of(**options):
    return Detection(Network(), **dict(max_boxes=2, most=4, candidates=20) | options)


def test_the_loss_reaches_every_parameter_and_falls_to_nothing_where_all_is_right():
    task, rng = task_of(), np.random.default_rng(0)
    abstract = jax.eval_shape(task.init, jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), abstract)
    batch = {"image": jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32), "boxes": BOXES, "classes": CLASSES}

    def loss(params):
        return task.loss(Variables(params), batch, Context(jax.random.key(1), jnp.int32(0)))

    (total, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert float(total) == pytest.approx(float(sum(aux.metrics.values())), rel=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    assert not [path_of(path) for path, leaf in leaves if not np.isfinite(leaf).all() or not np.abs(leaf).max() > 0]

    maps = jax.eval_shape(lambda: task.network.apply({"params": params["model"]}, batch["image"])[0])
    boxes, classes = jnp.asarray(BOXES), jnp.asarray(CLASSES)
    empty = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), maps)
    wanted = task.targets(empty, boxes, classes)
    there = wanted.classes >= 0
    right = empty._replace(
        classes=(40.0 * jax.nn.one_hot(wanted.classes, 3) - 20).reshape(maps.classes.shape),
        distances=jnp.where(there[..., None], wanted.distances, 1.0).reshape(maps.distances.shape),
    )
    found = task.losses(right, boxes, classes)
    assert there.sum() > 4 and float(found["class_loss"]) < 1e-6 and float(found["box_loss"]) < 1e-6
    mean = wanted.centreness[there]  # the centre-ness logit is 1 everywhere
    expected = -(mean * np.log(1 / (1 + np.exp(-1))) + (1 - mean) * np.log(1 / (1 + np.exp(1)))).mean()
    assert float(found["centreness_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_average_precision_counted_by_hand():
    # Right, wrong, right, wrong of three objects: the best precision is 1 up to a recall of 1/3 and 2/3 up to 2/3.
    assert precision.mean_precision(np.array([1, 0, 1, 0], bool), 3) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert precision.mean_precision(np.zeros(0, bool), 3) == 0 and precision.mean_precision(np.ones(2, bool), 2) == 1

    true_boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10], [-1, -1, -1, -1]]], float)
    true_classes = np.array([[0, 0], [0, -1]])
    whole, most, twice, none = [0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 9], [50, 50, 60, 60]
    boxes = np.array([[twice, whole, none], [most, none, whole]], float)
    scores = np.array([[0.6, 0.9, 0.8], [0.7, 0.0, 0.95]])
    classes = np.array([[0, 0, 0], [0, 0, 4]])  # the surest of all is of a class that is not there
    found = precision.average_precision(boxes, scores, classes, true_boxes, true_classes)
    # By score: whole (right), none (wrong), most (an overlap of 0.6), twice (its object is taken).
    assert found.shape == (1, 10)
    assert np.allclose(found[0, :3], (34 + 33 * 2 / 3) / 101) and np.allclose(found[0, 3:], 34 / 101)


def test_the_blind_guess_covers_most_boxes_first():
    boxes = np.array([[0, 0, 8, 8], [0, 0, 8, 7], [0, 1, 8, 8], [20, 20, 28, 28], [0, 0, 8, 8]], float)
    found, scores, classes = precision.blind_boxes(boxes, np.array([1, 1, 1, 1, 0]), 3)
    assert classes.tolist() == [1, 1, 0] or classes.tolist() == [1, 0, 1]
    assert scores.tolist() == [0.6, 0.2, 0.2] and found[0].tolist() == [0, 0, 8, 8]
    assert len(precision.blind_boxes(boxes, np.array([1, 1, 1, 1, 0]), 1)[0]) == 1


def test_the_evaluator_stands_beside_a_blind_guess_and_draws():
    task = task_of()
    judge = AveragePrecision(task=task, num_pictures=1)
    batch = {"boxes": BOXES, "classes": CLASSES, "image": np.zeros((2, 16, 16, 3), np.float32), "weight": np.ones(2)}
    right = {"boxes": BOXES, "scores": np.where(CLASSES >= 0, 0.9, 0.0), "classes": CLASSES}
    wrong = right | {"classes": (CLASSES + 1) % 3}
    states = [judge.update(judge.update(None, arrays, batch), arrays, batch) for arrays in (wrong, right)]
    assert len(states[0]["boxes"]) == 4 and len(states[0]["images"]) == 1
    found = judge.result(*states)
    assert found.metrics["ap"] == found.metrics["ap50"] == 1
    assert 0 < found.metrics["ap50_marginal"] < 1  # in every picture all that there is in any
    assert found.images["boxes"].shape == (1, 2 * 128 + 2, 128, 3) and found.images["boxes"][0, :128].std() > 10
    mistaken = judge.result(states[0], states[0]).metrics
    assert mistaken["ap50"] == 0 and mistaken["ap50_any_class"] == 1


def test_refusals_name_the_field():
    with pytest.raises(ValueError, match=r"task\.reach is 0\.0"):
        task_of(reach=0.0)
    with pytest.raises(ValueError, match=r"task\.most is 0"):
        task_of(most=0)
    with pytest.raises(ValueError, match=r"task\.overlap_limit is 2\.0"):
        task_of(overlap_limit=2.0)
    with pytest.raises(ValueError, match=r"classes has 3, but model\.num_classes is 3"):
        task_of().check({"boxes": BOXES, "classes": CLASSES + np.array([[1, 0], [0, 0]])})
    task_of().check({"boxes": BOXES, "classes": CLASSES})  # the class of a row without area is not looked at
    with pytest.raises(ValueError, match="did you mean 'colour'"):
        objects.add_objects({}, np.zeros(0, np.uint64), "color")
    with pytest.raises(ValueError, match=r"'boxes' and 'obj' in data\.options\.fields"):
        objects.add_objects({"boxes": BOXES}, np.zeros(0, np.uint64))


def test_objects_of_scenes_have_the_class_that_is_asked_for():
    seeds = np.zeros(40, np.uint64)
    truth = source.Still("test", fields=("boxes", "obj")).read(np.arange(40), seeds)
    found = objects.add_objects(truth, seeds, "colour")
    seen = truth["boxes"][..., 0] >= 0
    assert (found["classes"][seen] == truth["obj"][seen][:, 1]).all() and (found["classes"][~seen] == -1).all()
    assert found["boxes"].dtype == np.float32 and len(np.unique(found["classes"])) == 9
