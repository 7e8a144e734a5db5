"""Eight host devices in every test process; a test sees one of them unless it is marked `devices(8)`."""

import importlib.util
import os

import jaxlib.version

# For commands that a test starts: they see the machine as a user does. A test worker inherits what is set below.
COMMAND_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
COMMAND_ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = ""  # and leave nothing in a home

# Up to jaxlib 0.10 loops could be compiled by the older emitters: the same numbers, three times sooner. What reads the
# flag and does not know it ends the process, and libtpu reads it as well.
OLDER_EMITTERS = jaxlib.version.__version_info__ < (0, 11) and not importlib.util.find_spec("libtpu")
QUICK_COMPILER = " --xla_cpu_use_fusion_emitters=false" if OLDER_EMITTERS else ""
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + QUICK_COMPILER
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"  # threads for eight devices: with fewer, devices wait for each other's collectives for ever

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # tests ask whether numbers are right, not how fast
jax.config.update("jax_default_matmul_precision", "highest")


ALL_DEVICES = jax.devices()
jax.devices = lambda *args: ALL_DEVICES[:1]  # also for fixtures that live longer than a test


def pytest_collection_modifyitems(items):
    """The one long test first, lest a worker waits for it at the end."""
    items.sort(key=lambda item: "test_quickstart" not in item.nodeid)


@pytest.fixture(autouse=True)
def visible_devices(request, monkeypatch):
    marker = request.node.get_closest_marker("devices")
    if marker:
        monkeypatch.setattr(jax, "devices", lambda *args: ALL_DEVICES[: marker.args[0]])
