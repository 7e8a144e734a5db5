import jax
import numpy as np
import pytest

from transformer_zoo.convert.table import (
    HEADS,
    HEADS_BIAS,
    HEADS_OUT,
    LINEAR,
    Constant,
    Rule,
    axes,
    export_arrays,
    flatten,
    import_arrays,
    linear,
    numbered,
    patch_convolution,
    unflatten,
)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def shapes(**leaves):
    return {path.replace("_", "/"): jax.ShapeDtypeStruct(shape, np.float32) for path, shape in leaves.items()}


def test_heads_take_a_fused_projection_apart_as_torch_reshapes_it():
    weight, bias, x = normal(18, 5), normal(18), normal(7, 5)
    fused = (x @ weight.T + bias).reshape(7, 3, 2, 3)  # tokens, part, head, dim
    kernel, our_bias = HEADS.to_ours(weight, (5, 3, 2, 3)), HEADS_BIAS.to_ours(bias, (3, 2, 3))
    assert np.allclose(np.einsum("nw,wphd->nphd", x, kernel) + our_bias, fused, atol=1e-6)
    out, y = normal(5, 6), normal(7, 2, 3)
    assert np.allclose(
        np.einsum("nhd,hdw->nw", y, HEADS_OUT.to_ours(out, (2, 3, 5))), y.reshape(7, 6) @ out.T, atol=1e-6
    )


def test_patch_convolution_orders_pixels_by_row_column_channel():
    weight = normal(5, 3, 2, 4)
    ours = patch_convolution((2, 4)).to_ours(weight, (24, 5))
    for width, channel, row, column in np.ndindex(5, 3, 2, 4):
        assert ours[(row * 4 + column) * 3 + channel, width] == weight[width, channel, row, column]


@pytest.mark.parametrize(
    "transform, theirs, ours",
    [
        (LINEAR, (4, 6), (6, 4)),
        (HEADS, (12, 5), (5, 3, 2, 2)),
        (HEADS_OUT, (5, 6), (2, 3, 5)),
        (patch_convolution((2, 4)), (5, 3, 2, 4), (24, 5)),
        (axes("1 row 1 width -> width row"), (1, 2, 1, 3), (3, 2)),
    ],
)
def test_transforms_invert(transform, theirs, ours):
    array = normal(*theirs)
    there = transform.to_ours(array, ours)
    assert there.shape == ours and np.array_equal(transform.to_theirs(there), array)


def test_axes_refuse_what_they_cannot_tell():
    with pytest.raises(ValueError, match="name different axes"):
        axes("a b -> a c")
    with pytest.raises(ValueError, match="does not tell how to split an axis of length 7"):
        patch_convolution((2, 2)).to_theirs(normal(7, 3))
    with pytest.raises(ValueError, match="does not tell how to split an axis of length 12"):
        axes("a b -> (a b)").to_theirs(normal(12))


def test_blocks_are_stacked_and_taken_apart():
    table = [
        *linear("blocks.{i}.fc", "blocks/up"),
        Rule("stages.{i}.{j}.odd.{2*j+1}", "stages/odd"),
        Rule(("q.{i}", "k.{i}", "v.{i}"), "qkv/kernel", HEADS),
        Rule("gate_and_up", ("gate", "up"), LINEAR),
        Rule(("w3", "w2"), ("a", "b"), axes("in out -> out in"), axis=1),
    ]
    ours = {
        "blocks/up/kernel": normal(2, 3, 4),
        "blocks/up/bias": normal(2, 4),
        "stages/odd": normal(2, 3, 5),
        "qkv/kernel": normal(2, 6, 3, 2, 3),
        "gate": normal(5, 4),
        "up": normal(5, 3),
        "a": normal(2, 5),
        "b": normal(6, 5),
    }
    theirs = export_arrays(table, ours)
    assert np.array_equal(theirs["blocks.1.fc.weight"], ours["blocks/up/kernel"][1].T)
    assert np.array_equal(theirs["stages.1.2.odd.5"], ours["stages/odd"][1, 2])
    assert np.array_equal(theirs["k.1"], ours["qkv/kernel"][1, :, 1].reshape(6, 6).T)
    assert np.array_equal(theirs["gate_and_up"], np.concatenate([ours["gate"].T, ours["up"].T]))
    assert np.array_equal(np.hstack([theirs["w3"], theirs["w2"]]), np.hstack([ours["a"].T, ours["b"].T]))
    assert theirs["w3"].shape == theirs["w2"].shape == (5, 4)
    back = import_arrays(table, theirs, {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in ours.items()})
    assert back.keys() == ours.keys() and all(np.array_equal(back[path], ours[path]) for path in ours)


def test_parts_of_one_array_may_differ_in_length():
    table = [Rule(("qk.weight", "v.weight"), "qkv", HEADS, shares=(2, 1))]
    theirs = {"qk.weight": normal(8, 5), "v.weight": normal(4, 5)}
    ours = import_arrays(table, theirs, shapes(qkv=(5, 3, 2, 2)))
    assert np.array_equal(ours["qkv"][3, 2, 1, 0], theirs["v.weight"][2, 3])
    assert np.array_equal(ours["qkv"][3, 1, 1, 0], theirs["qk.weight"][6, 3])
    back = export_arrays(table, ours)
    assert back.keys() == theirs.keys() and all(np.array_equal(back[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"v.weight has shape \(8, 5\), but qkv of shape .* takes \(4, 5\)"):
        import_arrays(table, theirs | {"v.weight": normal(8, 5)}, shapes(qkv=(5, 3, 2, 2)))


def test_numbered_counts_in_steps():
    assert numbered("a.{i}.b.{2*j+1}.c.{i+3}", {"i": 4, "j": 5}) == "a.4.b.11.c.7"


def test_everything_that_does_not_fit_is_named_at_once():
    table = [*linear("blocks.{i}.fc", "up"), *linear("head", "head")]
    theirs = {
        "blocks.0.fc.weight": normal(4, 3),
        "blocks.0.fc.bias": normal(4),
        "blocks.1.fc.weight": normal(5, 3),
        "head.weight": normal(7, 4),
        "extra": normal(1),
        "blocks.2.fc.bias": normal(4),
    }
    wanted = shapes(up_kernel=(2, 3, 4), up_bias=(2, 4), head_kernel=(4, 7), head_bias=(7,), mine=(2,))
    with pytest.raises(ValueError) as caught:
        import_arrays(table, theirs, wanted)
    message = str(caught.value)
    assert "blocks.1.fc.weight has shape (5, 3), but up/kernel of shape (2, 3, 4) takes (4, 3)" in message
    assert "nothing fills: up/bias (wants blocks.1.fc.bias); head/bias (wants head.bias); mine" in message
    assert "there is no place for: extra; blocks.2.fc.bias" in message


def test_what_is_allowed_may_be_missing_or_left():
    table = [*linear("body", "body"), *linear("head", "head")]
    theirs = {"body.weight": normal(4, 3), "body.bias": normal(4), "old_head.weight": normal(9, 4)}
    wanted = shapes(body_kernel=(3, 4), body_bias=(4,), head_kernel=(4, 7), head_bias=(7,))
    found = import_arrays(table, theirs, wanted, allow_missing=["head/.*"], allow_unplaced=["old_head.*"])
    assert sorted(found) == ["body/bias", "body/kernel"]
    with pytest.raises(ValueError, match=r"nothing fills: head/bias .*\nthere is no place for: old_head.weight"):
        import_arrays(table, theirs, wanted, allow_missing=["head/kernel"], allow_unplaced=["old"])


def test_prefixes_do_not_matter_on_either_side():
    table = [Rule("vit.a", "a"), Rule("b", "b")]
    for names in (("vit.a", "b"), ("a", "vit.b"), ("a", "b")):
        theirs = dict(zip(names, (normal(2), normal(3))))
        found = import_arrays(table, theirs, shapes(a=(2,), b=(3,)), prefixes=("vit.",))
        assert np.array_equal(found["a"], normal(2)) and np.array_equal(found["b"], normal(3))


def test_constants_are_checked_and_written():
    table = [Constant("table", normal(2, 3)), Rule("a", "a")]
    theirs = export_arrays(table, {"a": normal(4)})
    assert np.array_equal(theirs["table"], normal(2, 3))
    assert import_arrays(table, theirs, shapes(a=(4,))).keys() == {"a"}
    assert import_arrays(table, {"a": normal(4)}, shapes(a=(4,))).keys() == {"a"}
    assert import_arrays(table, theirs | {"table": normal(2, 3).astype(np.float16)}, shapes(a=(4,))).keys() == {"a"}
    with pytest.raises(ValueError, match=r"table differs by 0.0001 from our fixed table"):
        import_arrays(table, theirs | {"table": normal(2, 3) + np.float32(1e-4)}, shapes(a=(4,)))
    with pytest.raises(ValueError, match=r"table differs by nan"):
        import_arrays(table, theirs | {"table": normal(2, 3) * np.nan}, shapes(a=(4,)))
    with pytest.raises(ValueError, match=r"table has shape \(2, 4\), but ours is fixed at \(2, 3\)"):
        import_arrays(table, theirs | {"table": normal(2, 4)}, shapes(a=(4,)))


def test_arrays_stored_twice_must_be_equal():
    table = [Rule("embed.weight", "embed"), Rule("head.weight", "embed")]
    theirs = export_arrays(table, {"embed": normal(3, 4)})
    assert np.array_equal(theirs["embed.weight"], theirs["head.weight"])
    assert np.array_equal(import_arrays(table, theirs, shapes(embed=(3, 4)))["embed"], normal(3, 4))
    with pytest.raises(ValueError, match=r"embed gets another value from head\.weight"):
        import_arrays(table, theirs | {"head.weight": normal(3, 4) + 1}, shapes(embed=(3, 4)))


def test_export_names_what_has_no_place():
    with pytest.raises(ValueError, match="no place for: b; c"):
        export_arrays([Rule("a", "a")], {"a": normal(1), "b": normal(1), "c": normal(1)})


def test_other_collections_keep_their_names():
    variables = {"params": {"a": {"b": 1}, "c": 2}, "batch_stats": {"a": {"mean": 3}}}
    flat = flatten(variables)
    assert flat == {"a/b": 1, "c": 2, "batch_stats/a/mean": 3}
    assert unflatten(flat, variables) == variables
