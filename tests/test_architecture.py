"""The rooms of the house: who imports whom, what an import costs, what an install brings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOMS = (
    "naming",
    "task",
    "layers",
    "masking",
    "diffusion",
    "decoding",
    "data",
    "tasks",
    "models",
    "evaluation",
    "training",
    "convert",
    "zoo",
)


def imports_of(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_a_room_imports_only_rooms_above_it():
    for file in Path("transformer_zoo").rglob("*.py"):
        if file.name == "__main__.py":
            continue  # a command stands at the door and may use every room
        room = file.relative_to("transformer_zoo").parts[0].removesuffix(".py")
        for name in imports_of(file):
            match = re.match(r"transformer_zoo\.(\w+)", name)
            if match and room in ROOMS and match[1] in ROOMS:
                assert ROOMS.index(match[1]) <= ROOMS.index(room), f"{file} imports {name}"


def test_the_loop_knows_no_paper():
    for file in Path("transformer_zoo/training").glob("*.py"):
        rooms = {name.split(".")[1] for name in imports_of(file) if name.startswith("transformer_zoo.")}
        assert not rooms & {"models", "tasks", "zoo"}, file


def test_no_file_has_grown_past_500_lines():
    long = [
        file
        for folder in ("transformer_zoo", "configs", "benchmarks")
        for file in Path(folder).rglob("*.py")
        if len(file.read_text().splitlines()) > 500
    ]
    assert not long


def test_importing_the_index_brings_no_heavy_library():
    heavy = ["torch", "tensorflow", "orbax", "grain", "matplotlib", "sklearn", "tensorboardX", "wandb", "PIL", "scipy"]
    code = (
        "import jax, flax.linen, optax, sys; before = set(sys.modules); import transformer_zoo.zoo; "
        f"new = set(sys.modules) - before; print([name for name in {heavy} if name in new])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_default_install_asks_for_neither_torch_nor_tensorflow():
    text = Path("setup.py").read_text()
    default = text[text.index("install_requires") : text.index("extras_require")]
    assert not re.search(r'"(torch|tensorflow|tensorflow-cpu|libtpu|wandb)\b(?!-datasets)', default)
