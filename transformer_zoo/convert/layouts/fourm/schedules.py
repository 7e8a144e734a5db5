"""The golden run of schedules and of single steps of generation; the network of the latter is that of another file."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.convert.layout import abstract_variables
from transformer_zoo.convert.layouts.fourm import model
from transformer_zoo.convert.table import flatten, import_arrays, unflatten
from transformer_zoo.decoding.sampling import filter_logits, guide, temper
from transformer_zoo.diffusion import ddpm
from transformer_zoo.models.multimodal.fourm.embeddings import Tokens
from transformer_zoo.models.multimodal.fourm.generation import (
    emptied,
    encode,
    guided_passes,
    predict,
    read_on,
    weighted,
)
from transformer_zoo.models.multimodal.fourm.modalities import Modality
from transformer_zoo.models.multimodal.fourm.model import FourM
from transformer_zoo.models.multimodal.fourm.schedules import (
    Target,
    chain_steps,
    continued,
    temperatures,
    token_counts,
)

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]
Names = Mapping[str, Any]  # of stored outputs, to their shapes
KEYS = {"modality": "target_domain", "scheme": "scheme", "tokens": "num_tokens", "temperature": "temperature"}
KEYS |= {"guidance_scale": "cfg_scale", "conditions": "cfg_cond_domains"}

OF_TARGETS: tuple[str, ...] = ("autoregression_schemes", "decoding_steps", "token_decoding_schedules")
OF_TARGETS += ("temps", "temp_schedules", "cfg_scales")


def golden(config: Mapping[str, Any]) -> tuple[None, Callable[[Any, Inputs], Outputs]]:
    """The run: all outputs by the reference's names. Nothing of it is one network's, so there is none."""

    def run(variables: Any, inputs: Inputs) -> Outputs:
        found = counts(config["outputs"])
        for part in (heat, chains, filters, diffusion):
            found |= part(inputs, config["outputs"])
        return found | generation(inputs, config)

    return None, run


def counts(names: Names) -> Outputs:
    """Tokens a step, for every 'KIND/STEPS_TOTAL' among the names."""
    found: Outputs = {}
    for name in names:
        kind, _, rest = name.partition("/")
        if kind in ("cosine", "linear"):
            steps, total = map(int, rest.split("_"))
            found[name] = token_counts(kind, steps, total)
    return found


def heat(inputs: Inputs, names: Names) -> Outputs:
    """Temperatures, and schedules that begin in the middle."""
    found: Outputs = {}
    for key in _parts(inputs, "temp"):
        tokens, (first, least, power) = np.asarray(inputs[f"{key}/tokens"]), np.asarray(inputs[f"{key}/args"])
        kinds = {"linear": "linear", "onex": f"onex:{least}:{power}", "decreasing": f"falling:{least}"}
        found |= {f"{key}/{theirs}": temperatures(kind, first, tokens) for theirs, kind in kinds.items()}
        found[f"{key}/continued"] = continued(tokens, int(inputs[f"{key}/num_current"]))
    return found


def chains(inputs: Inputs, names: Names) -> Outputs:
    """Whole chains, as JSON."""
    found: Outputs = {}
    for key in _parts(inputs, "chain"):
        given = json.loads(str(inputs[f"{key}/json"]))
        targets = []
        for number, name in enumerate(given["target_domains"]):
            one = {
                key: values[number] for key, values in given.items() if isinstance(values, list) and key in OF_TARGETS
            }
            targets.append(
                Target(
                    name,
                    scheme=one["autoregression_schemes"],
                    steps=one["decoding_steps"] or 1,
                    counts=one["token_decoding_schedules"] or "linear",
                    temperature=one["temps"],
                    temperature_schedule=one["temp_schedules"],
                    guidance_scale=one["cfg_scales"],
                )
            )
        places = dict(zip(given["target_domains"], given["tokens_per_target"]))
        steps = chain_steps(targets, places, given["cond_domains"], given["cfg_grow_conditioning"])
        named = [{theirs: step[ours] for ours, theirs in KEYS.items()} for step in steps]
        found[f"{key}/json"] = np.asarray(json.dumps(named))
    return found


def filters(inputs: Inputs, names: Names) -> Outputs:
    """Logits after top-k ('k4', 'kfrac0.3') and top-p ('p0.8')."""
    found: Outputs = {}
    for name in names:
        if not name.startswith("filter/"):
            continue
        top_k: float = 0
        top_p = 0.0
        for part in name.removeprefix("filter/").split("_"):
            if part.startswith("p"):
                top_p = float(part[1:])
            else:
                top_k = float(part[5:]) if part.startswith("kfrac") else int(part[1:])
        found[name] = filter_logits(jnp.asarray(inputs["filter/logits"]), top_k, top_p)
    return found


def diffusion(inputs: Inputs, names: Names) -> Outputs:
    """Shares of signal, times, noising and single steps of DDIM with five steps."""
    found: Outputs = {}
    output, sample = (jnp.asarray(inputs[f"diffusion/{name}"]) for name in ("model_output", "sample"))
    for name in names:
        kind, *rest = name.removeprefix("diffusion/").split("/")
        if not name.startswith("diffusion/"):
            continue
        if rest and rest[-1] == "alphas_cumprod":
            found[name] = ddpm.signal_shares(kind, zero_terminal=rest[0].endswith("1")).astype(np.float32)
        elif kind == "timesteps":
            found[name] = ddpm.sampling_times(int(rest[1]), rest[0])
        elif kind == "ddim5":
            signal = ddpm.signal_shares(zero_terminal=rest[1].endswith("1"))
            time = int(rest[2][1:])
            after = signal[time - 200] if time >= 200 else 1.0
            found[name] = ddpm.ddim_step(output, sample, float(signal[time]), float(after), rest[0])
        elif kind == "add_noise":
            noise, times = jnp.asarray(inputs["diffusion/noise"]), jnp.asarray(inputs["diffusion/add_noise_t"])
            found[name] = ddpm.add_noise(sample, noise, times, ddpm.signal_shares(zero_terminal=True))
    return found


def generation(inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Steps of MaskGIT, ROAR and of reading on, with the samples that the reference drew."""
    settings, other = config["settings"], config["weights"]
    network, _ = model.golden(other)
    abstract = abstract_variables("fourm", network)
    arrays = {name.removeprefix("weights/"): array for name, array in inputs.items() if name.startswith("weights/")}
    idle = [re.escape(name) for name in other["settings"]["params_not_reaching_the_outputs"]]
    filled = import_arrays(model.reference(network), arrays, flatten(abstract), allow_unplaced=idle)
    sampler = Sampler(
        network,
        jax.tree.map(jnp.asarray, unflatten(filled)["params"]),
        {name: state(network, inputs, f"state/{name}") for name in settings["mod_dict_order"]},
        settings["target"],
        settings["conditioning"],
    )
    found: Outputs = {}
    for name, tokens in sampler.known.items():
        gone = emptied(network.all_modalities[name], tokens) if name in sampler.conditions else tokens
        found |= stored(name, network.all_modalities[name], gone, name in sampler.conditions)
    return found | maskgit(inputs, sampler) | roar(inputs, sampler) | reading(inputs, sampler, config["outputs"])


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A network, what is known, what is asked for, and what guidance takes away."""

    network: FourM
    params: Any
    known: dict[str, Tokens]
    target: str
    conditions: list[str]

    def logits(self, scale: Any, here: Tokens) -> tuple[list[Any], list[Any], Any]:
        """Passes of guidance, the logits of each at the targets, and where those stand."""
        rest = {name: one for name, one in self.known.items() if name != self.target}
        passes, count = guided_passes(self.network, rest, self.conditions, scale), int(here.targets.sum(axis=1).max())
        found = []
        for one in passes:
            context = encode(self.network, self.params, {**one.known, self.target: here})
            found.append(predict(self.network, self.params, context, self.target, here, count))
        return passes, [values for values, _ in found], found[0][1].place


def maskgit(inputs: Inputs, sampler: Sampler) -> Outputs:
    """Steps that keep the surest samples, and logits guided by several conditions."""
    here = sampler.known[sampler.target]
    _, (conditional, unconditional), places = sampler.logits(2.0, here)
    found = {"maskgit/logits_cond": conditional, "maskgit/logits_uncond": unconditional, "maskgit/mod_pos": places}
    for key in _parts(inputs, "maskgit"):
        scale, temperature, top_k, top_p, number = np.asarray(inputs[f"{key}/scale_T_topk_topp_n"]).tolist()
        guided = guide(conditional, unconditional, scale)
        kept = filter_logits(guided, int(top_k) if top_k >= 1 else top_k, top_p)
        chances = jax.nn.softmax(temper(kept, temperature))
        samples = jnp.asarray(inputs[f"{key}/all_samples"])
        sure = jnp.take_along_axis(chances, samples[..., None], axis=-1)[..., 0]
        best = jnp.argsort(-sure, axis=1)[:, : int(number)]
        found |= {f"{key}/guided_logits": guided, f"{key}/probs": chances}
        found |= moved(key, here, *(jnp.take_along_axis(x, best, axis=1) for x in (places, samples)))
    weights = dict(zip(map(str, inputs["multi/kept_condition_per_pass"]), np.asarray(inputs["multi/weights"]).tolist()))
    passes, several, _ = sampler.logits(weights, here)
    return found | {"multi/logits": weighted(several, passes)}


def roar(inputs: Inputs, sampler: Sampler) -> Outputs:
    """A step that asks for random places only; theirs stand in the order of the draw, ours in that of the places."""
    here = sampler.known[sampler.target]
    number, temperature, scale = np.asarray(inputs["roar/n_T_g"]).tolist()
    drawn = jnp.argsort(jnp.where(here.targets, jnp.asarray(inputs["roar/mask_rand"]), 2.0), axis=1)[:, : int(number)]
    chosen = jnp.zeros_like(here.targets).at[jnp.arange(len(drawn))[:, None], drawn].set(True)
    passes, logits, places = sampler.logits(scale, here.replace(targets=chosen & here.targets))
    rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
    conditional, guided = (
        jnp.take_along_axis(x, rank[..., None], axis=1) for x in (logits[0], weighted(logits, passes))
    )
    found = {"roar/logits_cond": conditional, "roar/mod_pos": jnp.take_along_axis(places, rank, axis=1)}
    found["roar/guided_probs"] = jax.nn.softmax(temper(guided, temperature))
    return found | moved("roar", here, found["roar/mod_pos"], jnp.asarray(inputs["roar/samples"]))


def reading(inputs: Inputs, sampler: Sampler, outputs: Mapping[str, Any]) -> Outputs:
    """A sequence read on, and the logits at each of its ids."""
    network, params, found = sampler.network, sampler.params, {}
    name = next(key.split("/")[1] for key in inputs if key.startswith("ar/") and key.endswith("/tensor"))
    known = sampler.known | {name: state(network, inputs, f"ar/{name}")}
    conditions = [one for one in sampler.conditions if one != name]
    for kind, scale in (("greedy", 1.0), ("guided", float(inputs["ar/guidance_scale"]))):
        target = Target(name, scheme="autoregressive", temperature=0.0, guidance_scale=scale)
        passes = guided_passes(network, known, conditions, scale)
        contexts = [encode(network, params, one.known) for one in passes]
        ids = read_on(network, params, known, target, jax.random.key(0), conditions, contexts)
        ids = ids[:, : outputs[f"ar/{kind}/ids"][1]]
        everywhere = jnp.ones(ids.shape, bool)
        spoken = Tokens(ids, ~everywhere, everywhere)
        logits = [predict(network, params, context, name, spoken)[0] for context in contexts]
        found[f"ar/{kind}/ids"] = ids
        steps = outputs[f"ar/{kind}/last_logits_per_step"][1]
        found[f"ar/{kind}/last_logits_per_step"] = weighted(logits, passes)[:, :steps]
    return found


def state(network: FourM, inputs: Inputs, key: str) -> Tokens:
    """One modality of the sampler's state, whose masks hide where ours show."""
    values = jnp.asarray(inputs[f"{key}/tensor"])
    if network.all_modalities[key.split("/")[1]].kind == "pixels":
        values = values.transpose(0, 2, 3, 1)
    masks = (~jnp.asarray(inputs[f"{key}/{which}_mask"]) for which in ("input", "target"))
    return Tokens(values, *masks)


def moved(key: str, here: Tokens, places: Any, samples: Any) -> Outputs:
    """The state after samples have been written at places."""
    rows = jnp.arange(len(places))[:, None]
    return {
        f"{key}/new_tensor": here.values.at[rows, places].set(samples),
        f"{key}/new_input_mask": ~here.inputs.at[rows, places].set(True),
        f"{key}/new_target_mask": ~here.targets.at[rows, places].set(False),
    }


def stored(name: str, modality: Modality, tokens: Tokens, is_emptied: bool) -> Outputs:
    """A modality of an emptied state as theirs: a sequence's target, from sentinel to sentinel, is kept beside it."""
    values, key = tokens.values, f"emptied_state/{name}"
    found: Outputs = {"input_mask": ~tokens.inputs, "target_mask": ~tokens.targets}
    if is_emptied:
        found["target_mask"] = jnp.zeros_like(tokens.targets)
    if modality.kind == "pixels":
        values = values.transpose(0, 3, 1, 2)
    if is_emptied and modality.kind == "sequence":
        first = modality.first_sentinel
        values = values.at[:, 1].set(first).at[:, -1].set(first + 1)
        found |= {"target_mask": tokens.inputs, "decoder_attention_mask": ~tokens.inputs}
    return {f"{key}/{kind}": value for kind, value in (found | {"tensor": values}).items()}


def _parts(inputs: Inputs, kind: str) -> list[str]:
    """'temp0', 'temp1', ... of all inputs of a kind."""
    found = {name.split("/")[0] for name in inputs}
    return sorted(name for name in found if name.startswith(kind) and name.removeprefix(kind).isdigit())
