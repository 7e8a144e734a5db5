"""Freed memory stays with the process, also that of large temporaries."""

import subprocess
import sys

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from transformer_zoo.training.host_memory import keep_freed_memory

keep_freed_memory()

@jax.jit
def step(x):  # temporaries of 67 MiB, more than a heap of glibc has
    return jnp.sort(jnp.outer(x, x).reshape(-1, 2), axis=1).sum(0)  # not so cheap that XLA keeps the calling thread

x = jnp.linspace(0, 1, 4200)
for _ in range(2):
    jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_temporaries_are_not_faulted_in_again():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 4 * 4200**2 / 4096 / 8  # an eighth of the pages of one step
