import subprocess
import sys

import jaxlib.version
import pytest

from tests.conftest import COMMAND_ENVIRONMENT
from transformer_zoo.training import xla_flags
from transformer_zoo.training.errors import UserError


def test_they_are_off_by_default_and_touch_nothing():
    environment = {"XLA_FLAGS": "--xla_a=1"}
    assert xla_flags.set_flags("", environment) == [] and environment == {"XLA_FLAGS": "--xla_a=1"}


def test_they_join_what_is_set_and_never_replace_it():
    own = "--xla_gpu_enable_latency_hiding_scheduler=false --xla_a=1"
    environment = {"XLA_FLAGS": own}
    added = xla_flags.set_flags("gpu", environment)
    assert environment["XLA_FLAGS"] == " ".join([own, *(flag.text for flag in added)])
    assert added and not any("latency_hiding" in flag.text for flag in added)
    environment = {}
    xla_flags.set_flags("tpu", environment)
    assert set(environment) == {"LIBTPU_INIT_ARGS"} and "ici_ag_pipelining=true" in environment["LIBTPU_INIT_ARGS"]


def test_versions_are_compared_by_number():
    assert xla_flags.numbers("0.10.2") < xla_flags.numbers("0.12.0.1.dev2026+cuda") == (0, 12, 0, 1)
    known = {flag.text for flag in xla_flags.flags_for("gpu", "0.12.0.1")}
    assert known == {flag.text for flag in xla_flags.FLAGS if flag.platform == "gpu"}


@pytest.mark.parametrize(
    ("platform", "version", "message"),
    [
        ("gpus", "0.10.2", "platform 'gpus' is unknown; did you mean 'gpu'"),
        ("cpu", "0.10.2", "platform 'cpu' is unknown"),
        ("gpu", "0.4.30", r"jaxlib 0\.4\.30 was not looked at.*take jaxlib from 0\.10\.2 to before 0\.13"),
        ("tpu", "0.12.0", r"jaxlib 0\.12\.0 was not looked at.*from 0\.10\.2 to before 0\.11"),
    ],
)
def test_a_platform_or_version_without_flags_is_refused(platform, version, message):
    with pytest.raises(UserError, match=message):
        xla_flags.flags_for(platform, version)


def test_every_flag_says_why_and_who_says_so():
    for flag in xla_flags.FLAGS:
        assert flag.text.startswith("--xla_") and "=" in flag.text and flag.why and flag.source.startswith("https://")


def test_the_compiler_here_knows_the_flags_of_a_gpu():
    """It ends the process for flags that it does not know, also where there is no GPU."""

    def compiles(flags):
        program = "import jax; jax.jit(lambda x: x + 1)(1.0)"
        environment = COMMAND_ENVIRONMENT | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        return not subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True).returncode

    texts = [flag.text for flag in xla_flags.flags_for("gpu", jaxlib.version.__version__)]
    assert compiles(" ".join(texts))
    assert not compiles("--xla_gpu_enable_async_collectives=true")
