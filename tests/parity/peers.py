"""What all parity tests share: random parameters, our gradients in the peer's names, the comparison rule."""

import copy
import re

import jax
import numpy as np
import torch

from transformer_zoo.convert.layout import abstract_variables, layout
from transformer_zoo.convert.table import Rule, export_arrays, flatten, import_arrays, unflatten

KEY_BIASES = ("k_proj.bias", "k_norm.bias")


def randomise(model, keep=()):
    """Every parameter and buffer at random, also those that start at zero; norms' scales around one."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in keep:
                continue
            noise = torch.tensor(generator.standard_normal(tensor.shape), dtype=tensor.dtype)
            scale = tensor.ndim == 1 and name.endswith(("weight", "gamma", "scale"))
            tensor.copy_(1 + 0.3 * noise if scale else 0.2 * noise)
    return model.eval()


def state(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def load(key, name, module, model):
    """Our variables from a peer's state_dict, and the layout's rules."""
    chosen = layout(key, name)
    abstract, table = abstract_variables(key, module), chosen.table(module)
    arrays = import_arrays(table, state(model), flatten(abstract), prefixes=chosen.prefixes)
    return unflatten(arrays, abstract), [rule for rule in table if isinstance(rule, Rule)]


def gradients(model, table, grads):
    """(theirs, ours) by name, for every parameter that the peer trains.

    A bias that all keys share cannot change a softmax, so that its gradient is rounding error in both: it is put beside
    that of the queries, as where both are one array.
    """
    ours = export_arrays(table, flatten(jax.device_get(grads)))
    theirs = {
        name: np.zeros(tuple(parameter.shape), np.float32) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert theirs.keys() == ours.keys()
    pairs = {name: (theirs[name], ours[name]) for name in theirs}
    for name in [name for name in pairs if name.endswith(KEY_BIASES)]:
        query = re.sub(r"k(_proj|_norm)\.bias$", r"q\1.bias", name)
        pairs[query] = tuple(np.concatenate(both) for both in zip(pairs[query], pairs.pop(name)))
    return pairs


def like(key, name, network, model, **options):
    """A network of ours as a peer's arrays tell it, and `options` where they do not."""
    chosen = layout(key, name)
    return network(**chosen.arguments(chosen.strip(state(model)), options) | options)


def agree(module, key, name, model, theirs, pixels, ours=lambda output, aux: output, again=None):
    """Worst relative error of an output and of every parameter's gradient for one cotangent.

    `theirs` is the peer's output, `ours` takes the same out of what the network returns. `again(model, pixels)` gives
    the peer's output once more: where its own gradients in float32 lie farther from those in float64 than a tenth of
    the error allowed, ten times that distance is allowed.
    """
    variables, table = load(key, name, module, model)
    cotangent = normal(2, *theirs.shape)
    own = {} if again is None else inaccuracies(model, again, pixels, cotangent)
    (theirs * torch.from_numpy(np.asarray(cotangent))).sum().backward()

    @jax.jit
    def run(params, rest, pixels):
        def loss(params):
            output = ours(*module.apply({"params": params, **rest}, pixels))
            return (output * cotangent).sum(), output

        return jax.value_and_grad(loss, has_aux=True)(params)

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    (_, output), grads = run(variables["params"], rest, pixels)
    pairs = gradients(model, table, {"params": grads}) | {"output": (theirs.detach().numpy(), output)}
    return worst(pairs, own)


def inaccuracies(model, again, pixels, cotangent):
    """How far the peer's gradients in float32 lie from its own in float64, by name."""
    found = []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(model).to(dtype)
        twin.zero_grad()
        (again(twin, to_torch(pixels).to(dtype)) * torch.from_numpy(np.asarray(cotangent))).sum().backward()
        named = {name: parameter.grad for name, parameter in twin.named_parameters()}
        found.append({name: grad.double().numpy() for name, grad in named.items() if grad is not None})
    return {name: float(np.abs(found[0][name] - found[1][name]).max()) for name in found[0]}


def worst(pairs, own=None):
    """The largest error of any pair (theirs, ours), as a share of theirs' largest value or of 1e-3.

    `own` is the peer's own inaccuracy by name; an error of ten times that counts no more than 1e-4.
    """
    errors = {}
    for name, (theirs, ours) in pairs.items():
        error = np.abs(np.asarray(ours) - theirs).max()
        scale = max(np.abs(theirs).max(), 1e-3)
        errors[name] = error / max(scale, 10 * (own or {}).get(name, 0) / 1e-4)
    name = max(errors, key=errors.get)
    print(f"worst of {len(errors)}: {name} {errors[name]:.2g}")
    return errors[name]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(batch, height, width, channels=3):
    return normal(1, batch, height, width, channels)


def to_torch(array):
    """Channels first."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
