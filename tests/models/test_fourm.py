"""4M: what its sheet states in numbers, masks, generation and the task; golden files cover the network itself."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.cases.fourm import CASES
from tests.convert.samples import filled as filled_arrays
from transformer_zoo import zoo
from transformer_zoo.convert.files import write_arrays
from transformer_zoo.convert.layout import layout
from transformer_zoo.convert.table import export_arrays, flatten
from transformer_zoo.models.multimodal.fourm import generation, masking, scores
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens, grid_table
from transformer_zoo.models.multimodal.fourm.modalities import Modality, read_modalities
from transformer_zoo.models.multimodal.fourm.model import FourM, visibility
from transformer_zoo.models.multimodal.fourm.objective import total_loss
from transformer_zoo.models.multimodal.fourm.schedules import Target, temperatures, token_counts
from transformer_zoo.models.multimodal.fourm.task import FourMTask
from transformer_zoo.task import Context, Variables
from transformer_zoo.training import checkpoints
from transformer_zoo.training.config import load_config
from transformer_zoo.training.flops import count_flops
from transformer_zoo.training.sharding import path_of
from transformer_zoo.training.state import abstract_variables
from transformer_zoo.zoo.load import load, save

WORDS = {"kind": "sequence", "length": 5, "vocabulary": 40}
MODALITIES = {
    "pixels": {"kind": "pixels", "grid": (2, 2), "patch_size": (2, 2), "channels": 1},
    "ids": {"kind": "tokens", "grid": (2, 2), "vocabulary": 11},
    "words": WORDS,
    "vectors": {"kind": "embeddings", "length": 3, "width": 6},
}
CORE = ("encoder", "decoder", "context", "mask_token")


def network(**options):
    fields = dict(modalities=MODALITIES, width=8, num_heads=2, depth=1, decoder_depth=1)
    return FourM(**fields | options)


def task_of(modalities=MODALITIES, **options):
    return FourMTask(network=network(modalities=modalities), **dict(num_inputs=6, num_targets=5) | options)


def filled(task, seed=0):
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), abstract)


def batch_of(task, count=4):
    rng = np.random.default_rng(1)
    spec = task.spec(count)
    fields = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in spec.items()}
    for name, leaf in spec.items():
        if leaf.dtype == jnp.int32:
            fields[name] = rng.integers(25, 35, leaf.shape) if "ids" not in name else rng.integers(0, 11, leaf.shape)
    return {name: jnp.asarray(values) for name, values in fields.items()}


def test_ids_modalities_and_masks_start_as_large_as_they_are_told():
    learned = {**MODALITIES["ids"], "grid": (8, 8), "positions": "learned"}
    task = task_of({"words": WORDS, "learned": learned})
    task = dataclasses.replace(task, network=task.network.clone(width=192, embedding_deviation=1.0))
    params = jax.jit(lambda key: task.init(key).params)(jax.random.key(0))["model"]
    seen, asked = params["input_embedding_learned"], params["output_embedding_learned"]
    tables = [params["input_embedding_words"]["embedding"], seen["embedding"], seen["positions"], asked["positions"]]
    for table in (*tables, params["mask_token"], params["modality_embedding_words"]):
        assert 0.8 < table.std() < 1.2


@pytest.mark.parametrize("size", [size for size, entry in zoo.sizes("fourm").items() if "network" not in entry])
def test_core_parameters_are_those_of_the_reference(size):
    variables = abstract_variables(zoo.build_task(load_config(f"configs/fourm.py:{size}")))
    leaves = jax.tree_util.tree_leaves_with_path(variables.params["model"])
    count = sum(np.prod(leaf.shape, dtype=int) for path, leaf in leaves if path_of(path).split("/")[0] in CORE)
    assert count == zoo.sizes("fourm")[size]["core_parameters"]


def test_the_table_of_positions_on_a_square():
    s, c = np.sin(1), np.cos(1)
    slow = [s, np.sin(0.01), c, np.cos(0.01)]
    rows = [[0, 0, 1, 1] * 2, [0, 0, 1, 1, *slow], [*slow, 0, 0, 1, 1], [*slow, *slow]]
    assert np.allclose(grid_table((2, 2), 8), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("spans", "seen"),
    [
        ([4, 0, 0, 0], [4, 4, 4, 4]),
        ([1, 1, 1, 1], [1, 2, 3, 4]),
        ([2, 0, 1, 1], [2, 2, 3, 4]),
    ],
)
def test_spans_of_targets_see_what_the_paper_says(spans, seen):
    found = np.asarray(visibility(jnp.asarray([spans]), jnp.zeros((1, 4), int)))[0]
    assert [np.flatnonzero(row).tolist() for row in found] == [list(range(count)) for count in seen]


def test_targets_of_an_image_and_a_text_side_by_side():
    image = {"image": {"kind": "tokens", "grid": (2, 5), "vocabulary": 11}, "text": WORDS | {"vocabulary": 23}}
    model = network(modalities=image)
    ids = jnp.arange(10)[None] % 11
    places = jnp.zeros((1, 10), bool).at[0, jnp.asarray([1, 2, 7, 9])].set(True)
    text = jnp.asarray([[0, 8, 12, 13, 9, 0]])
    batch = {
        "image": Tokens(ids, jnp.zeros_like(places), places),
        "text": Tokens(text, jnp.zeros((1, 6), bool), jnp.asarray([[0, 1, 1, 1, 1, 0]], bool)),
    }
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    asked = model.apply(variables, batch, 8, method="choose_targets")
    assert asked.ids.tolist() == [[1, 2, 7, 9, 12, 13, 9, 0]]
    assert asked.modality.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1]]
    seen = [np.flatnonzero(row).tolist() for row in np.asarray(asked.sees[0])]
    assert seen == [[0, 1, 2, 3]] * 4 + [[4], [4, 5], [4, 5, 6], [0, 1, 2, 3]]
    other = model.apply(variables, batch, 5, jnp.asarray([1, 0]), method="choose_targets")
    assert other.modality.tolist() == [[1, 1, 1, 0, 0]]  # what does not fit is left out at the end


@pytest.mark.parametrize(("kind", "total"), [("modality", 3.49392), ("logit", 3.53352), ("token", 3.46836)])
def test_the_three_ways_to_weigh_modalities(kind, total):
    losses = {"image": jnp.float32(3.31494), "text": jnp.float32(3.67291)}
    counts = {"image": jnp.float32(4), "text": jnp.float32(3)}
    assert float(total_loss(losses, counts, {"image": 11, "text": 23}, kind)) == pytest.approx(total, abs=1e-5)


def test_a_modality_is_added_by_the_config_alone_and_masks_never_compile_again():
    task = task_of(MODALITIES | {"boxes": WORDS | {"chunk": 2}})
    variables, batch = filled(task), batch_of(task)
    loss = jax.jit(lambda key: task.loss(variables, batch, Context(key, jnp.int32(0))))
    values = [loss(jax.random.key(seed)) for seed in range(3)]
    assert loss._cache_size() == 1
    assert all(np.isfinite(float(total)) for total, _ in values) and len({float(total) for total, _ in values}) == 3
    assert set(values[0][1].metrics) == {"ids_loss", "words_loss", "boxes_loss"}


def test_what_is_not_shown_changes_nothing():
    task = task_of()
    model, params = task.network, filled(task).params["model"]
    batch = batch_of(task)
    tokens = task.mask(jax.random.key(3), task.values(Variables({}), batch))
    other = {
        name: one.replace(values=jnp.where(_spread(one.inputs | one.targets, one.values), one.values, 7))
        for name, one in tokens.items()
        if name in ("ids", "words")
    }
    first, aux = model.apply({"params": params}, tokens, 8, 5)
    second, _ = model.apply({"params": params}, {**tokens, **other}, 8, 5)
    used = np.asarray(aux["targets"].filled)
    assert all(np.allclose(first[name][used], second[name][used], atol=1e-6) for name in first)


def _spread(mask, values):
    return mask.reshape(values.shape)


def test_probes_read_the_encoder_of_whole_images():
    task = task_of()
    variables, ctx = jax.eval_shape(task.init, jax.random.key(0)), Context(jax.random.key(0), 0)
    found = jax.eval_shape(lambda v, b: task.features(v, b, ctx), variables, task.spec(3))
    assert found["pooled"].shape == (3, 8)
    blind = task_of({name: one for name, one in MODALITIES.items() if name != "pixels"})
    with pytest.raises(ValueError, match="offers no features"):
        blind.features(variables, {}, ctx)


def test_mixtures_say_who_is_shown_and_asked():
    task = task_of(mixture=({"inputs": {"pixels": 1000.0}, "targets": {"words": 1.0}},))
    tokens = task.mask(jax.random.key(0), task.values(Variables({}), batch_of(task, 50)))
    assert {name for name, one in tokens.items() if one.inputs.any()} == {"pixels"}
    assert {name for name, one in tokens.items() if one.targets.any()} == {"words"}
    kept = task_of(mixture=({"inputs": {"words": 1.0}, "targets": 0.5, "keep": {"words": "all"}},))
    tokens = kept.mask(jax.random.key(0), kept.values(Variables({}), batch_of(kept, 50)))
    words = np.asarray(tokens["words"].values)[np.asarray(tokens["words"].inputs)]
    assert (words >= 25).all()  # no sentinel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mixture=({"inputs": {"idz": 1.0}, "targets": 1.0},)), "'idz' is unknown; did you mean 'ids'"),
        (dict(mixture=({"input": 1.0},)), "'input' is unknown; did you mean 'inputs'"),
        (dict(mixture=({"inputs": 1.0},)), "shows or asks for no modality"),
        (dict(mixture=({"inputs": 1.0, "targets": 1.0, "keep": "most"},)), "'most' is unknown"),
        (dict(loss_kind="mean"), "'mean' is unknown"),
        (dict(fewest_inputs=9), "fewest_inputs must lie between"),
        (dict(modalities={"a": WORDS | {"num_sentinels": 2}}), "need num_sentinels 4"),
        (dict(modalities={"a": WORDS | {"knd": 1}}), "'knd' is unknown; did you mean 'kind'"),
        (dict(modalities="4m8"), "did you mean '4m7'"),
        (dict(modalities={"a": {"kind": "tokens", "vocabulary": 3, "tokenizer": "t"}}), "config.requires does not"),
    ],
)
def test_configs_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        task_of(**options)


def test_published_sets_hold_what_the_papers_list():
    seven, many = read_modalities("4m7"), read_modalities("4m21")
    assert (len(seven), len(many), sum(m.predicted for m in many.values())) == (8, 19, 17)
    high = read_modalities("super_resolution")
    assert {name for name, m in high.items() if m.predicted} == {
        f"tok_{k}@448" for k in ("rgb", "depth", "normal", "semseg", "clip")
    }
    assert high["tok_rgb@448"].places == 784 and many["human_poses"].decoder_length == 263


def words_of(ids, inputs=None):
    ids = jnp.asarray([ids])
    return Tokens(ids, ids > 0 if inputs is None else jnp.asarray([inputs], bool), jnp.zeros(ids.shape, bool))


def test_generated_spans_take_the_places_of_their_sentinels():
    modality = Modality(**WORDS)
    known = words_of([31, 8, 32, 9, 0, 0, 0, 0])
    spoken = jnp.asarray([[8, 25, 26, 9, 27, 10, 0]])
    merged = generation.merge_spans(modality, known, spoken)
    assert merged.values.tolist() == [[31, 25, 26, 32, 27, 0, 0, 0]] and int(merged.inputs.sum()) == 5
    alone = generation.merge_spans(modality, None, jnp.asarray([[8, 25, 2, 9, 0, 0, 0]]))
    assert alone.values[0, :4].tolist() == [25, 2, 0, 0] and int(alone.inputs.sum()) == 2


def test_an_empty_text_is_one_sentinel_and_empty_vectors_one_vector():
    modalities = read_modalities(MODALITIES)
    known = {
        name: masking.whole(one, jnp.ones(one.shape(1), one.dtype), shown=True) for name, one in modalities.items()
    }
    gone = {name: generation.emptied(modalities[name], tokens) for name, tokens in known.items()}
    assert {name: int(tokens.inputs.sum()) for name, tokens in gone.items()} == {
        "pixels": 0,
        "ids": 0,
        "words": 1,
        "vectors": 1,
    }
    assert gone["words"].values[0, 0] == 8 and not gone["vectors"].values.any()


def test_guidance_combines_passes_by_their_weights():
    model = network()
    known = {name: masking.absent(one, 1) for name, one in read_modalities(MODALITIES).items()}
    assert [one.weight for one in generation.guided_passes(model, known, ["ids"], 1.0)] == [1.0]
    assert [one.weight for one in generation.guided_passes(model, known, ["ids"], 3.0)] == [3.0, -2.0]
    several = generation.guided_passes(model, known, ["ids", "words"], {"ids": 2.0, "words": -0.5})
    assert [one.weight for one in several] == [2.0, -0.5, -0.5]
    logits = [jnp.asarray([float(n)]) for n in (5, 7, 1)]
    assert float(generation.weighted(logits, several)[0]) == pytest.approx(1 + 2 * (5 - 1) - 0.5 * (7 - 1))


def test_a_chain_fills_what_is_unknown_and_keeps_what_is_known():
    task = task_of()
    model, params = task.network, filled(task).params["model"]
    modalities = read_modalities(MODALITIES)
    pixels = masking.whole(modalities["pixels"], jnp.ones((2, 4, 4, 1)), shown=True)
    given = Tokens(jnp.full((2, 4), 9), jnp.zeros((2, 4), bool).at[:, 1].set(True), jnp.zeros((2, 4), bool))
    chain = [Target("ids", "maskgit", steps=2, guidance_scale=2.0), Target("words", "autoregressive", temperature=0.0)]

    @jax.jit
    def run(key):
        return generation.generate(model, params, {"pixels": pixels, "ids": given}, chain, key, grow=True)

    found = run(jax.random.key(0))
    assert found["ids"].inputs.all() and (found["ids"].values[:, 1] == 9).all()
    assert (np.asarray(found["ids"].values) < 11).all()
    words = np.asarray(found["words"].values)[np.asarray(found["words"].inputs)]
    assert ((words < 8) | (words >= 24)).all()  # no sentinel is left


def test_schedules_of_the_sheet():
    assert token_counts("linear", 25, 196).tolist() == [8] * 21 + [7] * 4
    assert temperatures("linear", 1.0, np.full(4, 4)).tolist() == [1, 0.75, 0.5, 0.25]
    heat = temperatures("onex:0.5:0.5", 6.0, np.full(49, 4))
    assert np.allclose([*heat[:4], heat[24], heat[-1]], [5.8878, 4.6876, 3.9674, 3.4720, 1.025, 0.5], atol=1e-3)
    with pytest.raises(ValueError, match="did you mean 'maskgit'"):
        Target("ids", "maskgitt")


@pytest.mark.parametrize("size", ["B", "L"])
def test_fine_tuning_takes_the_whole_encoder(size):
    config = load_config(f"configs/fourm.py:finetune_{size}")
    task, pretrained = zoo.build_task(config), zoo.build_task(load_config(config.requires.pretrained))
    stored, targets = (
        {f"params/{path_of(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables.params)}
        for variables in map(abstract_variables, (pretrained, task))
    )
    plan, _ = checkpoints.plan_transfer(stored, targets, config.init_from.table, "the pretrained run")
    assert {path.split("/")[2] for path in set(targets) - set(plan)} == {"head"}
    depths = task.depths(abstract_variables(task).params["model"])
    assert depths["patches"]["projection"]["kernel"] == 0 and depths["head"]["kernel"] == task.network.depth + 1


def test_perfect_predictions_score_one_and_blind_ones_as_a_guess():
    rng = np.random.default_rng(0)
    semseg, depth = rng.integers(0, 8, (6, 4, 4)), rng.random((6, 4, 4))
    truth = {"semseg": semseg, "depth": depth}
    one = Modality(kind="tokens", vocabulary=3)
    sums = scores.semseg(semseg, semseg, truth, one) | scores.depth(depth, depth + 0.5, truth, one)
    found = scores.figures(sums)
    assert found["rgb_to_semseg_miou"] == 1 and found["rgb_to_semseg_miou_marginal"] < 0.5
    assert found["rgb_to_depth_rmse"] == 0 and found["rgb_to_depth_rmse_ceiling"] == pytest.approx(0.5)
    assert found["rgb_to_depth_rmse_marginal"] == pytest.approx(np.sqrt(depth.var(axis=0).mean()))


@pytest.mark.parametrize("targets", ["attention", "mlp", "all"])
def test_lora_starts_as_the_network_and_fuses_into_it(targets):
    task, adapted = task_of(), task_of(lora_rank=2, lora_targets=targets, lora_scale=0.5)
    base = filled(task)
    abstract = jax.eval_shape(adapted.init, jax.random.key(0))
    lora = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract.params["model"])
    variables = abstract.replace(params={"model": lora}, frozen={"base": base.params["model"]})
    assert jax.tree.structure(adapted.parameters(variables)) == jax.tree.structure(base.params["model"])
    fused = adapted.parameters(variables)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(base.params["model"])))
    if targets == "mlp":
        return
    qkv = lora["encoder"]["blocks"]["attention"]["qkv"]["kernel"]
    assert qkv["down"].shape == (1, 8, 6) and qkv["up"].shape == (1, 6, 24)  # a bottleneck for each of three parts
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), lora)
    kernel = adapted.parameters(variables.replace(params={"model": lora}))["encoder"]["blocks"]["attention"]["qkv"][
        "kernel"
    ]
    pair = lora["encoder"]["blocks"]["attention"]["qkv"]["kernel"]
    x = rng.normal(size=8).astype(np.float32)
    whole = np.asarray(base.params["model"]["encoder"]["blocks"]["attention"]["qkv"]["kernel"][0])
    wanted = np.einsum("d,dphk->phk", x, whole).ravel() + 0.5 * (x @ pair["down"][0]) @ pair["up"][0]
    assert np.allclose(np.einsum("d,dphk->phk", x, kernel[0]).ravel(), wanted, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "use_bias": True, "decoder_depth": 2, "tied": False}])
def test_ids_read_with_a_cache_are_those_read_from_the_start(options):
    modalities = MODALITIES | {"words": WORDS | {"decoder_length": 4}}
    task = FourMTask(network=network(modalities=modalities, **options), num_inputs=6, num_targets=5)
    model, params = task.network, filled(task).params["model"]
    params = jax.tree.map(lambda leaf: 3 * leaf, params)  # sure of its words
    pixels = masking.whole(task.modalities["pixels"], jnp.arange(32.0).reshape(2, 4, 4, 1) / 32, shown=True)
    known = {"pixels": pixels, "ids": masking.absent(task.modalities["ids"], 2)}
    target = Target("words", "autoregressive", temperature=0.0, guidance_scale=2.0)
    found = jax.jit(lambda: generation.read_on(model, params, known, target, jax.random.key(0), ["pixels"]))()
    passes = generation.guided_passes(model, known, ["pixels"], 2.0)
    contexts = [generation.encode(model, params, one.known) for one in passes]
    places = jnp.ones(found.shape, bool)
    tokens = Tokens(found, ~places, places)
    values = [generation.predict(model, params, one, "words", tokens, found.shape[1] - 1)[0] for one in contexts]
    likeliest = np.asarray(jnp.argmax(generation.weighted(values, passes), axis=-1))
    for ids, next_ids in zip(np.asarray(found), likeliest):
        spoken = int((ids > 0).sum()) - 1  # behind the closing sentinel there are zeros
        assert spoken > 0 and np.array_equal(ids[1 : 1 + spoken], next_ids[:spoken])
    assert not np.array_equal(found[0], found[1])


def test_what_is_encoded_is_encoded_once_for_all_ids_of_a_sequence():
    task = task_of()
    model, modalities = task.network, read_modalities(MODALITIES)
    params = jax.eval_shape(task.init, jax.random.key(0)).params["model"]
    pixels = jax.eval_shape(lambda: masking.whole(modalities["pixels"], jnp.ones((2, 4, 4, 1)), shown=True))
    target = Target("words", "autoregressive")

    def encoded(params, pixels):
        return generation.encode(model, params, {"pixels": pixels})

    def read(params, pixels, contexts=None):
        return generation.read_on(model, params, {"pixels": pixels}, target, jax.random.key(0), contexts=contexts)

    context = jax.eval_shape(encoded, params, pixels)
    whole, rest = count_flops(read, params, pixels).total, count_flops(read, params, pixels, [context]).total
    assert whole - rest == count_flops(encoded, params, pixels).total > 0


@pytest.mark.parametrize(
    "layout_and_kind", [("reference", "biased"), ("vq", ""), ("divae", ""), ("memcodes", ""), ("vit", "")]
)
def test_released_files_are_read_and_written(layout_and_kind, tmp_path):
    module, name = CASES[layout_and_kind], layout_and_kind[0]
    ours = filled_arrays("fourm", module)
    theirs = export_arrays(layout("fourm", name).table(module), ours)
    write_arrays(tmp_path / "released.safetensors", theirs, {"format": "pt"})
    told = {field: getattr(module, field) for field in ("num_heads", "decoder_num_heads") if hasattr(module, field)}
    told = told if name != "memcodes" else {}
    found, variables, _ = load("fourm", "", tmp_path / "released.safetensors", **told)
    assert found == module
    save("fourm", found, variables, None, tmp_path / "ours")
    again, kept, _ = load("fourm", "", tmp_path / "ours")
    if name == "reference":  # JSON knows no tuples
        assert again.all_modalities == module.all_modalities
        again = again.clone(modalities=module.modalities)
    assert again == module and flatten(kept).keys() == ours.keys()
    assert all(np.array_equal(value, ours[path]) for path, value in flatten(jax.device_get(kept)).items())
