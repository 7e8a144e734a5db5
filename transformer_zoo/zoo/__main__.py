"""The index of papers: python -m transformer_zoo.zoo [--json] [--recount] [--readme README.md].

Run it where configs/ is, the top of the repository.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformer_zoo.training import command
from transformer_zoo.zoo import counts, index, table


def main(arguments: Sequence[str]) -> None:
    """Prints the index; with --recount computes its figures anew, with --readme writes the README's table."""
    parser = argparse.ArgumentParser(prog="python -m transformer_zoo.zoo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a list of records instead of a table")
    parser.add_argument("--recount", action="store_true", help="compute parameters and macs anew; exit 1 on a change")
    parser.add_argument("--readme", type=Path, help="write the table of papers between the markers of this file")
    flags = parser.parse_args(arguments)
    changes = []
    if flags.recount:
        for key in index.papers():
            changes += counts.write_counts(key, counts.recount(key))
        index.papers.cache_clear()
        print("\n".join(changes) or "all figures are up to date", file=sys.stderr)
    if flags.readme:
        table.write_readme(flags.readme)
    if flags.json:
        print(json.dumps(table.records(), indent=1))
    elif not (flags.recount or flags.readme):
        print(table.text_table())
    if changes:
        sys.exit(1)


if __name__ == "__main__":
    command.main(main)
