"""What benchmarks.decoding makes of times; no test here measures any."""

import json

import numpy as np
import pytest

from benchmarks import decoding
from transformer_zoo.models.masked_generation.maskgit import MaskGIT
from transformer_zoo.models.masked_generation.raster import Raster

SIZES = dict(grid=(2, 2), num_codes=5, num_conditions=3, depth=1, width=8, num_heads=2)


def test_rows_compare_images_a_second(monkeypatch, capsys):
    monkeypatch.setattr(decoding, "matmul_rate", lambda dtype: 10.0)
    monkeypatch.setattr(decoding, "measure", lambda calls: [call() for call in calls])
    monkeypatch.setattr(decoding, "parallel_call", lambda network, batch, steps: (lambda: 2.0, 12.0))
    monkeypatch.setattr(decoding, "autoregressive_call", lambda network, batch: (lambda: 6.0, 30.0))
    monkeypatch.setattr(decoding, "torch_call", lambda network, batch, steps: lambda: 3.0)
    decoding.main(["--json", "--batch", "6"])
    beside_raster, raster, beside_torch = json.loads(capsys.readouterr().out)
    assert (beside_raster["ours"], beside_raster["peer"], beside_raster["ratio"]) == (3.0, 1.0, 3.0)
    assert beside_raster["share_of_matmul_rate"] == pytest.approx(12 / 2 / 10)
    assert (raster["ours"], raster["peer"], raster["ratio"]) == (1.0, None, None)
    assert (beside_torch["peer"], beside_torch["ratio"]) == (2.0, 1.5)

    def missing(network, batch, steps):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(decoding, "torch_call", missing)
    decoding.main([])
    out, err = capsys.readouterr()
    assert "no PyTorch to compare with: No module named 'torch'" in err and "ratio 3.00" in out


def test_calls_fill_grids_and_their_work_is_counted():
    call, work = decoding.parallel_call(MaskGIT(dropout_rate=0.0, **SIZES), 3, 2)
    ids = np.asarray(call())
    assert ids.shape == (3, 2, 2) and (ids < 5).all() and work > 0
    call, raster_work = decoding.autoregressive_call(Raster(**SIZES), 3)
    assert np.asarray(call()).shape == (3, 4) and raster_work > 0
