"""Every source: by name, with errors that help, and the same record whatever batch it is read in."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from transformer_zoo import naming
from transformer_zoo.data import draws, sources
from transformer_zoo.data.sources import open_source

EMBEDDED = [name for name in sources.SOURCES if name not in sources.EXAMPLES and name != "scenes"]


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_record_is_the_same_alone_and_in_a_batch_and_after_pickling(name, split):
    source = open_source(name, split, {})
    indices = np.array([3, 0, len(source) - 1, 3])
    seeds = draws.record_seeds(0, 1, np.arange(4))
    batch = source.read(indices, seeds)
    copy = pickle.loads(pickle.dumps(source))
    for row in range(4):
        alone = copy.read(indices[row : row + 1], seeds[row : row + 1])
        assert alone.keys() == batch.keys()
        for field, values in alone.items():
            np.testing.assert_array_equal(values[0], batch[field][row])


def test_every_source_says_what_is_real():
    for path in sources.SOURCES.values():
        assert "eal" in naming.load(path).about


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("folder", "write it like folder:/path/to/images"),
        ("tfds:", "write it like tfds:mnist"),
        ("digits:8", "takes nothing after a colon: write digits"),
    ],
)
def test_a_wrong_name_is_told_how_to_write_it(name, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, "train", {})


def test_a_path_that_is_not_there_names_what_lies_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "zebra").mkdir()
    for wrong in ("photo", "photo/below"):
        with pytest.raises(ValueError, match=f"did you mean '{tmp_path}/photos'"):
            sources.existing(f"{tmp_path}/{wrong}", "data.source")


def test_opening_a_source_brings_no_heavy_library():
    heavy = ["tensorflow", "tensorflow_datasets", "array_record", "grain", "tokenizers", "skimage", "sklearn", "PIL"]
    code = (
        "import sys; from transformer_zoo import naming; from transformer_zoo.data import sources; "
        "[naming.load(path) for path in sources.SOURCES.values()]; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
