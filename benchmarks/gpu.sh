#!/usr/bin/env bash
# Fills the table of speeds on a GPU in one call, also on a machine that has JAX, Flax and Optax but reaches no index:
#   benchmarks/gpu.sh pack    where there is an index: wheels of what that machine may lack, into benchmarks/wheels
#   benchmarks/gpu.sh         there: installs what is missing, then `python -m benchmarks.peers` in bfloat16
# Further arguments go to benchmarks.peers, such as --only=vit_l16.
set -euo pipefail
cd "$(dirname "$0")/.."
lacking=(ml-collections jaxtyping wadler-lindig flatbuffers safetensors absl-py)
if [ "${1:-}" = pack ]; then
    pip download --quiet --no-deps --dest benchmarks/wheels "${lacking[@]}"
    exit
fi
pip install --quiet --no-index --find-links=benchmarks/wheels "${lacking[@]}"
python -m benchmarks.peers --dtype bfloat16 "$@"
