"""Weights in and out.

python -m transformer_zoo.convert check FILE.npz
python -m transformer_zoo.convert import SLUG --from=FILE --to=DIR [--size=B16] [--set=num_heads=12 ...]
python -m transformer_zoo.convert export SLUG --from=DIR_OR_FILE --to=FILE --layout=timm
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

from transformer_zoo.convert import golden
from transformer_zoo.training import command
from transformer_zoo.training.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Runs one of the commands; `check` exits with 1 where an array is over the rule."""
    flags = _flags(arguments)
    try:
        if flags.command != "check":
            _convert(flags)
            return
        stored = golden.read(flags.file)
        network = golden.build(stored)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    comparisons = golden.compare(stored, golden.compute(stored, network))
    print(golden.report(comparisons))
    if not all(one.ok for one in comparisons):
        sys.exit(1)


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="transformer_zoo.convert", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compares our network with a golden file, array by array")
    check.add_argument("file")
    for name, to in (("import", "folder for weights.safetensors and config.json"), ("export", "file to write")):
        one = commands.add_parser(name)
        one.add_argument("slug", help="the paper, or the network")
        one.add_argument(
            "--from",
            dest="source",
            action="append",
            required=True,
            help="weights: a file, or a folder that import wrote; files given one after another count as one",
        )
        one.add_argument("--to", dest="target", required=True, help=to)
        one.add_argument("--size", default="", help="a published size, such as B16")
        one.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the network")
        one.add_argument("--allow-missing", action="append", default=[], metavar="REGEX", help="of our paths")
        one.add_argument("--allow-unplaced", action="append", default=[], metavar="REGEX", help="of names in the file")
    one.add_argument("--layout", required=True, help="whose names and shapes to write")
    return parser.parse_args(arguments)


def _convert(flags: argparse.Namespace) -> None:
    from transformer_zoo.zoo.export import save_as
    from transformer_zoo.zoo.load import load, save

    module, variables, preprocessing = load(
        flags.slug,
        flags.size,
        flags.source,
        allow_missing=flags.allow_missing,
        allow_unplaced=flags.allow_unplaced,
        **dict(map(_setting, flags.set)),
    )
    if flags.command == "import":
        save(flags.slug, module, variables, preprocessing, flags.target)
    else:
        save_as(flags.slug, flags.layout, module, variables, flags.target)
    print(flags.target)


def _setting(text: str) -> tuple[str, Any]:
    """'num_heads=12' as ('num_heads', 12); what is no Python literal is a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"write --set={text}=VALUE: a field needs a value")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    command.main(main)
