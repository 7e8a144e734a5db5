import dataclasses

from transformer_zoo.task import Evaluator


@dataclasses.dataclass(frozen=True)
class Sampling:
    guidance_scale: float = 3.0


class AnyToAny(Evaluator):
    pass
