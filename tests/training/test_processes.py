import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from tests.conftest import COMMAND_ENVIRONMENT, QUICK_COMPILER
from tests.training import toys
from transformer_zoo.evaluation import gathering
from transformer_zoo.training import checkpoints as store
from transformer_zoo.training import loop, processes, watchdog
from transformer_zoo.training.errors import UserError

# One of several processes with two devices each. Each makes its own rows of every batch, and says which.
SCRIPT = """
import argparse, os, sys, time
from pathlib import Path
import numpy as np
from transformer_zoo.training import loop, processes
coordinator, count, number, pause, workdir = sys.argv[1:]
flags = argparse.Namespace(coordinator=coordinator, processes=int(count), process=int(number))
processes.connect(flags)
from tests.training import toys
from transformer_zoo.data.loader import process_part
from transformer_zoo.data.pipeline import Data
def rows(batch):
    return {name: values[process_part(8)] for name, values in batch.items()}
def train(start):
    while True:
        time.sleep(float(pause))
        print("batch", start, flush=True)
        yield rows(toys.toy_batch(start))
        start += 1
def evaluate(split, limit):
    names = np.array([f"row {number}" for number in range(8)], object)
    yield rows(toys.toy_batch(10_000) | {"weight": np.arange(8, dtype=np.float32), "name": names})
config = toys.toy_config(total_steps=40, checkpoint={"every_steps": 5, "keep": 2}, mesh={"data": -1, "fsdp": 2})
figures = loop.train(config, toys.Regression(), {}, Data(train, evaluate), Path(workdir))
print("figures", figures, flush=True)
"""


def start(count, workdir, pause=0.0):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{found.getsockname()[1]}"
    environment = COMMAND_ENVIRONMENT | {
        "PYTHONPATH": os.getcwd(),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2" + QUICK_COMPILER,
        "NPROC": "8",
    }
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT),
                coordinator,
                str(count),
                str(number),
                str(pause),
                str(workdir),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(count)
    ]


def finish(started):
    outputs = [process.communicate(timeout=120) for process in started]
    for process, (_, errors) in zip(started, outputs):
        assert process.returncode == 0, errors
    return [out for out, _ in outputs]


def weights(workdir):
    path = store.newest_intact(workdir / "checkpoints")
    shape = jax.ShapeDtypeStruct((4,), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return np.asarray(store.restore(path, {"params": {"model": {"w": shape}}}, partial=True)["params"]["model"]["w"])


def alone(workdir):
    """Figures of the same run in one process."""

    def evaluate(split, limit):
        yield toys.toy_batch(10_000) | {"weight": np.arange(8, dtype=np.float32)}

    config = toys.toy_config(total_steps=40)
    data = toys.dataclasses.replace(toys.toy_data(), evaluate=evaluate)
    return loop.train(config, toys.Regression(), {}, data, workdir)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_what_one_trains_and_write_it_once(count, tmp_path):
    outputs = finish(start(count, tmp_path / "several"))
    told = [line for out in outputs for line in out.splitlines() if line.startswith("figures")]
    assert len(told) == count and len(set(told)) == 1, "all know the figures of the whole"
    expected = alone(tmp_path / "alone")
    figures = json.loads(told[0].removeprefix("figures ").replace("'", '"'))
    assert figures == pytest.approx(expected, rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "several/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(2, 41, 2))
    assert json.loads((tmp_path / "several/run.json").read_text())["processes"] == count
    np.testing.assert_allclose(weights(tmp_path / "several"), weights(tmp_path / "alone"), rtol=1e-5)


def test_a_killed_process_ends_the_run_which_resumes_exactly(tmp_path):
    finish(start(2, tmp_path / "whole"))
    first, second = start(2, tmp_path / "killed", pause=0.05)
    for line in first.stdout:
        if line.strip() == "batch 17":
            break
    second.kill()
    second.communicate()
    try:
        first.communicate(timeout=20)  # its next sum over both fails
    except subprocess.TimeoutExpired:
        first.kill()  # or waits for ever, which is what the watchdog is for
        first.communicate()
    assert first.returncode != 0
    outputs = finish(start(2, tmp_path / "killed"))
    (resumed,) = [line for out in outputs for line in out.splitlines() if line.startswith("resumed from step")]
    step = int(resumed.split()[3])
    assert 5 <= step < 20 and step % 5 == 0
    assert all(f"batch {step}\n" in out and f"batch {step - 1}\n" not in out for out in outputs)
    np.testing.assert_array_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_sigterm_to_one_process_stops_all_at_the_same_step(tmp_path):
    first, second = start(2, tmp_path, pause=0.05)
    for line in first.stdout:
        if line.strip() == "batch 10":
            break
    second.send_signal(signal.SIGTERM)
    outputs = finish([first, second])
    assert "stopped by a signal at step" in outputs[0] and "stopped by" not in outputs[1]
    assert store.newest_intact(tmp_path / "checkpoints").name < "00000040"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", 2, -1), "go together"),
        (("", 2, 0), "go together"),
        (("host:1", 2, 2), "--process=2 is not below --processes=2"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(flags, message):
    names = ("coordinator", "processes", "process")
    with pytest.raises(UserError, match=message):
        processes.connect(argparse.Namespace(**dict(zip(names, flags))))


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
    ],
)
def test_schedulers_are_known_by_what_they_set(environment, several):
    assert processes.expected(environment) == several


def test_processes_that_would_share_rows_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    processes.check_groups(8, "data=8")
    with pytest.raises(UserError, match=r"\(data=2, tensor=8\) splits the batch into 2 parts, which 4 processes"):
        processes.check_groups(2, "data=2, tensor=8")


def test_one_process_gathers_its_own():
    arrays, host = gathering.whole({"a": jax.numpy.arange(3)}, {"name": np.array(["x", "y"], object)})
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    assert list(host["name"]) == ["x", "y"]


def test_a_step_that_never_ends_is_stopped_and_says_where():
    script = """
    import time
    from transformer_zoo.training.watchdog import Watchdog
    dog = Watchdog(0.4)
    dog.start()
    for _ in range(5):
        time.sleep(0.2)
        dog.beat()
    with dog.resting():
        time.sleep(1.0)
    print("alive", flush=True)
    def a_step_that_hangs():
        time.sleep(60)
    a_step_that_hangs()
    """
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50)
    assert done.returncode == watchdog.STALLED and "alive" in done.stdout
    assert "no step ended for 0.4 s" in done.stderr and "a_step_that_hangs" in done.stderr
    assert time.monotonic() - begun < 40
