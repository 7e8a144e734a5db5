"""From a config to the objects that the loop takes."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
from ml_collections import ConfigDict

from transformer_zoo import naming
from transformer_zoo.data.pipeline import Data, checked, open_data
from transformer_zoo.task import Evaluator, Task
from transformer_zoo.training.weights import required_config
from transformer_zoo.zoo.index import network_path, papers
from transformer_zoo.zoo.load import load

TASKS = {
    "classification": "transformer_zoo.tasks.classification:Classification",
    "detection": "transformer_zoo.tasks.detection:Detection",
    "masked_pixels": "transformer_zoo.tasks.masked_pixels:MaskedPixels",
    "masked_tokens": "transformer_zoo.tasks.masked_tokens:MaskedTokens",
    "tokenization": "transformer_zoo.tasks.tokenization:Tokenization",
}
EVALUATORS = {
    "linear_probe": "transformer_zoo.evaluation.probes:LinearProbe",
    "nearest_neighbours": "transformer_zoo.evaluation.probes:NearestNeighbours",
    "few_shot": "transformer_zoo.evaluation.probes:FewShot",
    "scene_samples": "transformer_zoo.evaluation.scenes:SceneSamples",
    "scene_stories": "transformer_zoo.evaluation.stories:SceneStories",
    "pixel_baseline": "transformer_zoo.evaluation.probes:PixelBaseline",
    "scene_reading": "transformer_zoo.evaluation.reading:SceneReading",
    "digit_reading": "transformer_zoo.evaluation.reading:DigitReading",
    "digit_samples": "transformer_zoo.evaluation.reading:DigitSamples",
    "scene_frechet": "transformer_zoo.evaluation.frechet:SceneFrechet",
    "network_frechet": "transformer_zoo.evaluation.frechet:NetworkFrechet",
    "perceptual_distance": "transformer_zoo.evaluation.perceptual:PerceptualDistance",
}
# Those that judge by a network with weights by path, and the network that they take unless told otherwise.
EXTRACTORS = {"network_frechet": "inception_v3", "perceptual_distance": "lpips"}


@dataclasses.dataclass(frozen=True)
class Built:
    """What a config stands for."""

    task: Task
    evaluators: dict[str, Evaluator]
    data: Data


def build(config: Any, required: Mapping[str, Any] | None = None) -> Built:
    """Task, further evaluators and data of a config.

    Args:
        config: a checked config.
        required: configs of the runs that `config.requires` names, by name; where the task has a field of such a
            name, it gets that run's network; a field `tokenizers` gets all others, by name.

    Raises:
        ValueError: a name or a value that does not fit, with the field and the nearest valid one.
    """
    task = build_task(config, required)
    evaluators = {}
    for name, options in config.get("evaluators", {}).items():
        options = dict(options)
        kind = options.pop("name", "")
        if kind not in EVALUATORS:
            raise naming.unknown(f"evaluators.{name}.name", kind, EVALUATORS)
        given = {"task": task}
        if kind in EXTRACTORS:
            key = options.pop("extractor", EXTRACTORS[kind])
            arguments = options.pop("arguments", {})
            given |= extractor(key, options.pop("weights", ""), arguments, f"evaluators.{name}")
        evaluators[name] = naming.construct(naming.load(EVALUATORS[kind]), options, f"evaluators.{name}", given)
    data = open_data(
        config.data,
        batch_size=config.batch_size,
        eval_batch_size=config.eval.get("batch_size", 0) or config.batch_size,
        seed=config.seed,
    )
    splits = {split: None for judge in (*task.evaluators().values(), *evaluators.values()) for split in judge.splits}
    return Built(task, evaluators, checked(data, task.spec(), task.check, splits))


def extractor(key: str, weights: str, arguments: naming.Options, where: str) -> dict[str, Any]:
    """The fields `network` and `weights` of an evaluator that judges by a published network.

    Args:
        key: of the network.
        weights: their file, or the folder of their import.
        arguments: fields of the network that differ from the published ones.
        where: the evaluator in the config, for messages.

    Raises:
        ValueError: no weights, or a file that does not fit.
    """
    if not weights:
        raise ValueError(f"{where}.weights is missing: give the file of {key}'s weights, or the folder of its import")
    try:
        network, variables, _ = load(key, "", weights, **dict(arguments))
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error
    return {"network": network, "weights": variables}


def build_task(config: Any, required: Mapping[str, Any] | None = None) -> Task:
    """The task alone: what can be initialised, counted and planned without data.

    Without `required` the configs of `config.requires` are read, whether their runs exist or not, for networks that the
    task cannot do without. A group `config.sampling` becomes the task's field of that name.
    """
    dtype = compute_dtype(config.dtype)
    networks = {"network": config.model} if "name" in config.model else dict(config.model)
    given = {field: build_network(options, dtype, f"model.{field}") for field, options in networks.items()}
    options = dict(config.task)
    kind = options.pop("name", "")
    known = TASKS | {name: path for entry in papers().values() for name, path in entry.get("tasks", {}).items()}
    if kind not in known:
        raise naming.unknown("task.name", kind, known)
    task_class = naming.load(known[kind])
    fields = {field.name: field for field in dataclasses.fields(task_class)}
    if required is None:
        optional = {name for name, field in fields.items() if field.default is not dataclasses.MISSING}
        specs = {name: spec for name, spec in config.get("requires", {}).items() if name not in optional}
        required = {name: required_config(spec) for name, spec in specs.items()}
    if "sampling" in config:
        if "sampling" not in fields:
            raise ValueError(f"config.sampling is given, but the task {kind!r} samples nothing")
        kind_of_sampling = typing.get_type_hints(task_class)["sampling"]
        given["sampling"] = naming.construct(kind_of_sampling, config.sampling, "sampling")
    others: dict[str, Any] = {}
    for name, other in required.items():
        if name in fields or "tokenizers" in fields:
            main = other.model if "name" in other.model else other.model.network
            (given if name in fields else others)[name] = build_network(main, dtype, f"requires.{name}")
    if others:
        given["tokenizers"] = flax.core.freeze(others)
    return naming.construct(task_class, options, "task", given)


def build_network(options: naming.Options, dtype: str, where: str = "model") -> Any:
    """One network from its group in the config."""
    options = {key: value.to_dict() if isinstance(value, ConfigDict) else value for key, value in options.items()}
    name = options.pop("name")
    network = naming.load(network_path(name))
    return naming.construct(network, options, where.removesuffix(".network"), {"dtype": dtype})


def compute_dtype(name: str) -> str:
    """The dtype of computation: 'auto' is bfloat16 on accelerators and float32 on a CPU.

    Raises:
        ValueError: no floating dtype of that name.
    """
    known = ("float32", "bfloat16", "float16")
    if name == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in known:
        raise naming.unknown("dtype", name, ("auto", *known))
    return name
