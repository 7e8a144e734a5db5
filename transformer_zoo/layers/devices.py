"""What the code is traced for."""

import math

import jax


def current_device() -> tuple[str, float]:
    """Platform and compute capability of the device that the code is traced for: the mesh's, else the first one."""
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    planned = jax.sharding.get_abstract_mesh().abstract_device
    return (planned or device).platform, float(capability) if capability.replace(".", "", 1).isdigit() else 0.0


def on_one_cpu() -> bool:
    """Whether it is traced for a CPU, and no mesh splits anything."""
    return current_device()[0] == "cpu" and math.prod(jax.sharding.get_abstract_mesh().shape.values()) == 1
