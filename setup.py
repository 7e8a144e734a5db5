"""Installs transformer_zoo; extras add accelerators, parity checks and the planner."""

import setuptools

setuptools.setup(
    name="transformer_zoo",
    version="0.1.0",
    description="Papers on transformers and masked modelling as pure Flax modules, trained by one sharded loop.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["transformer_zoo", "transformer_zoo.*"]),
    package_data={"transformer_zoo": ["zoo/*.toml", "zoo/papers/*.toml"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "chex>=0.1.92",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",
        "ml-collections>=1.1.0",
        "absl-py",
        "jaxtyping>=0.3.11",
        "flatbuffers",  # jax.export cannot write without it
        "numpy",
        "pillow",
        "safetensors",
        "scikit-learn",
        "scikit-image",
        "tokenizers",
        "matplotlib",
        "tensorboardX",
        "tqdm",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "beartype>=0.23.1"],
        "lint": ["ruff", "mypy"],
        # timm asks for any torch; the pinned one keeps the parity figures comparable between machines.
        "parity": ["torch==2.13.0", "timm==1.0.31", "transformers==5.23.0", "diffusers"],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "plan": ["libtpu"],
        "wandb": ["wandb"],
    },
)
