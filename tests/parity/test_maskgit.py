"""MaskGIT's transformer beside transformers' BERT, which is the same function without segments."""

import jax
import numpy as np
import pytest

from transformer_zoo.convert.layout import abstract_variables
from transformer_zoo.convert.table import (
    HEADS,
    HEADS_BIAS,
    HEADS_OUT,
    Rule,
    flatten,
    import_arrays,
    linear,
    norm,
    unflatten,
)
from transformer_zoo.models.masked_generation.maskgit import MaskGIT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PARTS = ("query", "key", "value")
LAYER, OURS = "bert.encoder.layer.{i}", "bert/blocks"
TABLE = [
    Rule("bert.embeddings.word_embeddings.weight", "bert/embed/embedding"),
    Rule("bert.embeddings.position_embeddings.weight", "bert/positions"),
    *norm("bert.embeddings.LayerNorm", "bert/embed_norm"),
    Rule(tuple(f"{LAYER}.attention.self.{part}.weight" for part in PARTS), f"{OURS}/attention/qkv/kernel", HEADS),
    Rule(tuple(f"{LAYER}.attention.self.{part}.bias" for part in PARTS), f"{OURS}/attention/qkv/bias", HEADS_BIAS),
    Rule(f"{LAYER}.attention.output.dense.weight", f"{OURS}/attention/out/kernel", HEADS_OUT),
    Rule(f"{LAYER}.attention.output.dense.bias", f"{OURS}/attention/out/bias"),
    *norm(f"{LAYER}.attention.output.LayerNorm", f"{OURS}/norm1"),
    *linear(f"{LAYER}.intermediate.dense", f"{OURS}/mlp/up"),
    *linear(f"{LAYER}.output.dense", f"{OURS}/mlp/down"),
    *norm(f"{LAYER}.output.LayerNorm", f"{OURS}/norm2"),
    *linear("cls.predictions.transform.dense", "bert/head_hidden"),
    *norm("cls.predictions.transform.LayerNorm", "bert/head_norm"),
    Rule("cls.predictions.bias", "bert/head_bias"),
]
ELSEWHERE = [r"bert\.embeddings\.token_type_embeddings\.weight", r"cls\.predictions\.decoder\..*", r".*position_ids"]


@pytest.mark.parametrize(("grid", "width", "heads", "depth"), [((3, 5), 24, 3, 2), ((4, 4), 32, 4, 1)], ids=str)
def test_it_computes_what_bert_does(grid, width, heads, depth):
    ours = MaskGIT(grid=grid, num_codes=11, num_conditions=6, depth=depth, width=width, num_heads=heads)
    config = transformers.BertConfig(
        vocab_size=18,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_act="gelu_new",
        layer_norm_eps=1e-12,
        max_position_embeddings=1 + int(np.prod(grid)),
    )
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
        theirs.bert.embeddings.token_type_embeddings.weight.zero_()
    arrays = {name: array.numpy() for name, array in theirs.state_dict().items()}
    abstract = abstract_variables("maskgit", ours)
    found = import_arrays(TABLE, arrays, flatten(abstract), allow_unplaced=ELSEWHERE)
    rng = np.random.default_rng(0)
    ids, labels = (rng.integers(0, count, shape) for count, shape in ((18, (2, *grid)), (6, (2,))))
    with jax.default_matmul_precision("highest"):
        logits = ours.apply(unflatten(found, abstract), jax.numpy.asarray(ids), jax.numpy.asarray(labels))[1]["logits"]
    tokens = np.concatenate([labels[:, None] + 11, ids.reshape(2, -1)], axis=1)
    expected = theirs(torch.from_numpy(tokens)).logits.detach().numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
