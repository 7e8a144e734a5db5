import dataclasses
import functools
import importlib
import pkgutil

import numpy as np
import pytest

from tests.convert import cases
from tests.convert.samples import filled, random_arrays, vit
from transformer_zoo.convert.layout import abstract_variables, detect, layout, paper_layouts, papers
from transformer_zoo.convert.table import Rule, export_arrays, flatten, import_arrays

# Every file of cases/ holds small networks of one paper, {(layout, kind): network}; a new paper adds a file.
CASES = {
    (module.name, *case): network
    for module in pkgutil.iter_modules(cases.__path__)
    for case, network in importlib.import_module(f"{cases.__name__}.{module.name}").CASES.items()
}


@functools.cache
def shapes_of(case):
    """Layouts of one network share its shapes."""
    first = next(other for other in CASES if other[0] == case[0] and CASES[other] == CASES[case])
    return flatten(abstract_variables(case[0], CASES[case])) if first == case else shapes_of(first)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_import_inverts_export_bit_by_bit(case):
    key, name, _ = case
    module, chosen = CASES[case], layout(key, name)
    ours = random_arrays(shapes_of(case))
    theirs = export_arrays(chosen.table(module), ours)
    stacked = any("blocks/" in path for path in ours)
    assert len(theirs) > len(ours) if stacked else len(theirs) >= len(ours)  # blocks are apart there
    back = import_arrays(chosen.table(module), theirs, shapes_of(case), prefixes=chosen.prefixes)
    assert back.keys() == ours.keys() and all(np.array_equal(back[path], ours[path]) for path in ours)
    again = export_arrays(chosen.table(module), back)
    assert again.keys() == theirs.keys() and all(np.array_equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_names_tell_the_layout_and_arrays_the_network(case):
    key, name, kind = case
    module, chosen = CASES[case], layout(key, name)
    theirs = export_arrays(chosen.table(module), random_arrays(shapes_of(case)))
    assert detect(key, theirs) == name
    given = {"image_size": module.image_size} if kind in ("not_square", "no_positions") else {}
    told = chosen.arguments(chosen.strip(theirs), given)
    rebuilt = type(module)(**{field: getattr(module, field) for field in chosen.untold} | told | given)
    assert {
        field.name: (getattr(rebuilt, field.name), getattr(module, field.name))
        for field in dataclasses.fields(module)
        if getattr(rebuilt, field.name) != getattr(module, field.name)
    } == {}


def block_path(path):
    """Without what stands in front of the blocks: tables of blocks serve several networks."""
    return path[path.find("blocks/") :] if "blocks/" in path else path


def test_every_row_of_every_table_has_a_place_in_some_network():
    assert {(key, name) for key in papers() for name in paper_layouts(key).LAYOUTS} == {case[:2] for case in CASES}
    known = {block_path(path) for case in CASES for path in shapes_of(case)}
    rows = [row for case in CASES for row in layout(*case[:2]).table(CASES[case]) if isinstance(row, Rule)]
    assert {path for row in rows for path in row.paths if block_path(path) not in known} == set()


def test_fixed_positions_are_written_as_if_learned_and_checked():
    module = vit(positions="sincos_2d")
    table = layout("vit", "timm").table(module)
    theirs = export_arrays(table, filled("vit", module))
    learned = vit(prefix_positions=True)
    ours = import_arrays(layout("vit", "timm").table(learned), theirs, flatten(abstract_variables("vit", learned)))
    assert np.array_equal(ours["positions/table"][0], np.zeros(12))
    assert np.allclose(ours["positions/table"][2, :3], np.sin([1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]), atol=1e-6)
    theirs["pos_embed"] = theirs["pos_embed"][:, ::-1]
    with pytest.raises(ValueError, match="pos_embed differs by"):
        import_arrays(table, theirs, flatten(abstract_variables("vit", module)))


def test_networks_that_a_library_cannot_express_are_refused():
    with pytest.raises(ValueError, match="pool 'mean' has no place"):
        layout("vit", "transformers").table(vit("mean"))
    with pytest.raises(ValueError, match="'rope_2d' have no place"):
        layout("vit", "timm").table(vit(positions="rope_2d"))
    gated = vit(gated=True)
    with pytest.raises(ValueError, match="no place for: blocks/mlp/gate/bias; blocks/mlp/gate/kernel"):
        export_arrays(layout("vit", "timm").table(gated), filled("vit", gated))


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="'vti' is unknown; did you mean 'vit'"):
        paper_layouts("vti")
    with pytest.raises(ValueError, match="'tim' is unknown; did you mean 'timm'"):
        layout("vit", "tim")
    with pytest.raises(ValueError, match=r"fit no layout of 'mae' \(reference has .*; there are e.g. a, b"):
        detect("mae", ["a", "b"])


def test_positions_that_are_no_square_ask_for_the_size():
    module = vit("not_square")
    theirs = export_arrays(layout("vit", "timm").table(module), filled("vit", module))
    with pytest.raises(ValueError, match=r"7 rows of positions are no square grid; give image_size"):
        layout("vit", "timm").arguments(theirs, {})
