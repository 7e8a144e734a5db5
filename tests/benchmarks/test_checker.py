"""The table of what the judge can tell."""

import json

from benchmarks import checker


def test_the_table_has_every_damage_a_chance_and_the_speeds(capsys):
    checker.main(["--json", "--stills", "60", "--clips", "3", "--seconds", "0"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    names = [f"still {side}, {name}" for side in (32, 64) for name in checker.DAMAGES]
    names += [
        f"clip {side} {kind}, {name}" for side in (32, 64) for kind in ("full", "easy") for name in checker.DAMAGES
    ]
    assert set(names) | {name for name in rows if name.startswith("speed")} == set(rows) and len(rows) == len(names) + 4
    assert all(rows[f"still {side}, as generated"]["whole_objects"]["all"] == 1 for side in (32, 64))
    for name in names:
        assert rows[name]["ours"] > rows[name]["peer"] and rows[name]["scores"].keys() <= rows[name][
            "chance"
        ].keys() | {"action"}
    worse = rows["still 32, box 3x3"]["whole_objects"]
    assert worse["all"] <= worse["shape"] < worse["colour"]
    keys = ["name", "ours", "peer", "peer_name", "unit", "ratio"]
    keys += ["device", "dtype", "batch", "threads", "share_of_matmul_rate"]
    assert all(list(row)[:11] == keys for row in rows.values())
