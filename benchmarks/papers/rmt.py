"""RMT's claim about attention along the axes (section 3.3)."""

from collections.abc import Mapping

from benchmarks.runs import Figures, Run


def most_of_the_accuracy(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Test accuracy of decomposed attention, and 0.9 times that of whole attention."""
    decomposed, whole = runs["decay"], runs["whole"]
    return Figures(
        (decomposed.figures["test/accuracy"], 0.9 * whole.figures["test/accuracy"]),
        (decomposed.parameters, whole.parameters),
        (decomposed.flops, whole.flops),
    )
