"""Claims that a cheaper method keeps most of what a dearer one reaches."""

from collections.abc import Mapping

from benchmarks.runs import Figures, Run


def nine_tenths(seed: int, runs: Mapping[str, Run]) -> Figures:
    """Test accuracy of a claim's first run, and 0.9 times that of its second."""
    method, baseline = runs.values()
    return Figures(
        (method.figures["test/accuracy"], 0.9 * baseline.figures["test/accuracy"]),
        (method.parameters, baseline.parameters),
        (method.flops, baseline.flops),
    )
