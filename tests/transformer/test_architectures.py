"""RoBERTa, DistilBERT, ELECTRA, RoFormer, GPT-2 and untied BERTs, against transformers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from tests.battery import quick_jit
from tests.transformer.test_model import build
from zoo.decoding import prefill, sample
from zoo.transformer import TransformerConfig, load_transformer, save_transformer
from zoo.transformer.architectures import ARCHITECTURES
from zoo.transformer.attention import attention, attention_mask, dropped_attention
from zoo.transformer.weights import state_dict

TINY = TransformerConfig(
    vocab_size=13,
    features=4,
    num_layers=2,
    num_heads=2,
    feedforward_features=6,
    max_positions=7,
)
# What a model of each architecture has.
CONFIGS = {
    "bert": {"pooler": True},
    "roberta": {"mask": "causal"},
    "distilbert": {"num_segments": 0},
    "electra": {"embedding_features": 6},
    "roformer": {"positions": "rotary", "head": "none"},
    "gpt2": {"norm_position": "pre", "num_segments": 0, "mask": "causal", "head": "tied"},
}
SIZES = {"vocab_size": 31, "initializer_range": 0.3}
LONG = SIZES | {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 10,
}
THEIRS = {
    "BertForMaskedLM": LONG | {"tie_word_embeddings": False},
    "RobertaForMaskedLM": LONG | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "RobertaForCausalLM": LONG | {"is_decoder": True},
    "DistilBertForMaskedLM": SIZES
    | {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "max_position_embeddings": 10},
    "ElectraForMaskedLM": LONG | {"embedding_size": 8},
    "RoFormerForMaskedLM": LONG | {"embedding_size": 12},
    "GPT2LMHeadModel": SIZES | {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 10},
}


def parameters(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def made(name, **changes):
    return build(dataclasses.replace(TINY, **CONFIGS[name] | changes))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_loaded(tmp_path, name):
    """In one file, in shards with the head of another task, from arrays; in bfloat16."""
    pytest.importorskip("safetensors")
    model = made(name, tie_embeddings=CONFIGS[name].get("head") == "none")
    save_transformer(tmp_path, model, architecture=name)
    again = load_transformer(tmp_path)
    assert again.config == model.config
    assert not again.head
    jax.tree.map(np.testing.assert_array_equal, parameters(again.model), parameters(model))
    head = {"classifier.weight": np.ones((3, 4), np.float32)}
    save_transformer(tmp_path, model, architecture=name, head=head, shard_bytes=400)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 2
    low = load_transformer(tmp_path, param_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(low.head["classifier.weight"], head["classifier.weight"])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)),
        parameters(low.model),
        parameters(model),
    )
    save_transformer(tmp_path, low.model, architecture=name)  # one file again, in bfloat16
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    jax.tree.map(
        np.testing.assert_array_equal,
        parameters(load_transformer(tmp_path, param_dtype=jnp.bfloat16).model),
        parameters(low.model),
    )
    from_arrays = load_transformer(
        state_dict(model, architecture=name), config=model.config, architecture=name
    )
    jax.tree.map(np.testing.assert_array_equal, parameters(from_arrays.model), parameters(model))


def test_the_architecture_is_known_by_its_names():
    for name in ("bert", "roberta", "distilbert", "electra", "gpt2"):
        model = made(name)
        tensors = state_dict(model, architecture=name)
        again = load_transformer(tensors, config=model.config).model
        assert state_dict(again, architecture=name).keys() == tensors.keys()
        if name != "roberta":  # which is a BERT to us
            assert state_dict(model).keys() == tensors.keys()


def test_short_configs_have_the_defaults_of_the_originals(tmp_path):
    """Google's first releases lack what their code has a default for."""
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps({"vocab_size": 31, "hidden_size": 4, "num_attention_heads": 2,
                                "intermediate_size": 6, "num_hidden_layers": 1}))  # fmt: skip
    config = dataclasses.replace(
        TINY, vocab_size=31, num_layers=1, max_positions=512, num_segments=16, attention_dropout=0.1
    )
    loaded = load_transformer(state_dict(build(config)), config=path)
    assert loaded.config == config
    save_transformer(tmp_path, build(config))
    (tmp_path / "config.json").unlink()
    assert load_transformer(tmp_path).config == config
    path.rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"token_type_embeddings.weight \(16, 4\), .* \(2, 4\)"):
        load_transformer(tmp_path)


def test_positions_of_a_roberta_begin_after_that_of_padding(tmp_path):
    pytest.importorskip("safetensors")
    model = made("roberta")
    save_transformer(tmp_path, model, architecture="roberta")
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    assert (stored["max_position_embeddings"], stored["pad_token_id"]) == (9, 1)
    path.write_text(json.dumps(stored | {"pad_token_id": 3}))
    again = load_transformer(tmp_path).model
    np.testing.assert_array_equal(again.position_embedding[...], model.position_embedding[2:])


def test_heads_come_back_by_their_names():
    model = made("gpt2")
    tensors = {
        **state_dict(model),
        "score.weight": np.ones((2, 4)),
        "transformer.h.0.attn.bias": np.ones((1, 1, 7, 7)),  # a mask
    }
    assert list(load_transformer(tensors, config=model.config).head) == ["score.weight"]
    bert = made("bert")
    encoder = dataclasses.replace(bert.config, head="none", pooler=False)
    loaded = load_transformer(state_dict(bert), config=encoder)
    assert len(loaded.head) == 7  # a dense layer, its norm, the bias; the pooler
    assert "bert.pooler.dense.weight" in loaded.head


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must"),
        ("gpt2", {"activation_function": "silu"}, "activation_function must be one of"),
        ("gpt2", {"n_head": 3}, "num_heads must divide features"),
        ("roformer", {"rotary_value": True}, "rotary_value must be False"),
        ("roberta", {"hidden_act": "relu"}, "activation='relu', but its head has 'gelu'"),
        ("roberta", {"pad_token_id": -3}, "pad_token_id must be at least 0"),
        ("roberta", {"max_position_embeddings": 2}, "max_positions must be at least 1, got 0"),
        ("electra", {"embedding_size": 4.5}, "embedding_size must be an integer"),
        ("distilbert", {"model_type": "albert"}, "model_type must be one of 'bert', 'roberta'"),
    ],
)
def test_what_the_architecture_has_not_is_refused_by_name(tmp_path, name, changes, message):
    pytest.importorskip("safetensors")
    save_transformer(tmp_path, made(name), architecture=name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_transformer(tmp_path)


def test_models_of_other_architectures_are_refused():
    for name, model, message in (
        ("t5", made("bert"), "architecture must be one of 'bert'.*got 't5'"),
        ("gpt2", made("bert"), "'gpt2', got .*norm_position='post' instead of 'pre'"),
        ("bert", made("electra"), "'bert', got embedding_features=6"),
        ("bert", made("distilbert"), "'bert', got num_segments=0"),
        ("distilbert", made("distilbert", mask="causal"), "mask='causal' instead of 'bidirect"),
        ("electra", made("electra", activation="relu"), "but its head has 'gelu'"),
        (None, made("gpt2", num_segments=2), "known architecture, got bert: norm_position='pre'"),
    ):
        with pytest.raises(ValueError, match=message):
            state_dict(model, architecture=name)
    with pytest.raises(ValueError, match="shard_bytes must be at least 1, got 0"):
        save_transformer("nowhere", made("bert"), shard_bytes=0)


def hugging_face(name):
    """Their model with weights that hide no mistake, without dropout."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    theirs = kind(kind.config_class(**THEIRS[name])).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


@pytest.mark.slow  # importing transformers takes its time
@pytest.mark.parametrize("name", THEIRS)
def test_logits_of_transformers(tmp_path, name):
    """To 1e-5 of the largest, with padding; and theirs from what we write."""
    torch = pytest.importorskip("torch")

    theirs = hugging_face(name)
    theirs.save_pretrained(tmp_path)
    ours, config, head = load_transformer(tmp_path)
    assert not head
    assert config.attention_dropout == 0.1
    generator = np.random.default_rng(0)
    ids = generator.integers(2, 31, (3, 7))
    mask = np.arange(7) < np.array([[7], [5], [3]])
    inputs = {"input_ids": torch.tensor(np.where(mask, ids, 1))}
    inputs["attention_mask"] = torch.tensor(mask.astype(int))
    options = {"mask": jnp.asarray(mask)}
    if config.num_segments > 1:
        segments = generator.integers(0, 2, (3, 7))
        inputs["token_type_ids"] = torch.tensor(segments)
        options["segment_ids"] = jnp.asarray(segments)
    graph, weights = nnx.split(ours)
    apply = quick_jit(lambda p, ids, k: nnx.merge(graph, p)(ids, **k))
    found = np.asarray(apply(weights, jnp.asarray(ids), options))[mask]
    expected = theirs(**inputs).logits.detach().numpy()[mask]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    architecture = json.loads((tmp_path / "config.json").read_text())["model_type"]
    save_transformer(tmp_path / "ours", ours, architecture=architecture, shard_bytes=10_000)
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(
        again(**inputs).logits.detach().numpy()[mask], expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.slow
def test_continuations_of_transformers(tmp_path):
    """GPT-2, greedy: left-padded prompts, penalty over the prompt, n-grams, several ends."""
    torch = pytest.importorskip("torch")

    theirs = hugging_face("GPT2LMHeadModel")
    theirs.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path).model
    prompt = np.array([[3, 5, 7, 5], [0, 0, 9, 4], [0, 11, 2, 11]])
    mask = prompt > 0
    for options, same in (
        ({}, {}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        ({"end_id": [7, 20, 21, 22, 23, 24]}, {"eos_token_id": [7, 20, 21, 22, 23, 24]}),
    ):
        expected = theirs.generate(
            torch.tensor(prompt), attention_mask=torch.tensor(mask.astype(int)), max_new_tokens=6,
            do_sample=False, pad_token_id=0, **{"eos_token_id": None} | same,
        )[:, 4:]  # fmt: skip

        @functools.partial(jax.jit, static_argnums=())
        def write(prompt, mask, options=options):
            read = prefill(ours, prompt, max_length=6, mask=mask)
            return sample(
                jax.random.key(0), read.step_fn, read.state, start=read.start, max_length=6,
                temperature=0, context=jnp.where(mask, prompt, -1), **options,
            ).tokens  # fmt: skip

        found = np.asarray(write(jnp.asarray(prompt), jnp.asarray(mask)))
        np.testing.assert_array_equal(found[:, : expected.shape[1]], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heads"),
    [("RobertaForSequenceClassification", 4), ("ElectraForPreTraining", 4)],
)
def test_fine_tuned_checkpoints_of_transformers(tmp_path, monkeypatch, name, heads):
    monkeypatch.setitem(THEIRS, name, LONG)
    theirs = hugging_face(name)
    theirs.save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path)
    assert loaded.config.head == "none"
    own = {key: value for key, value in theirs.state_dict().items() if key in loaded.head}
    assert len(own) == len(loaded.head) == heads
    for key, value in own.items():
        np.testing.assert_array_equal(loaded.head[key], value.numpy())


@pytest.mark.slow
def test_attention_weights_are_dropped():
    generator = np.random.default_rng(0)
    q, k, v = (jnp.asarray(generator.normal(size=(2, 5, 2, 4)), jnp.float32) for _ in range(3))
    mask = attention_mask("bidirectional", mask=jnp.array([[1, 1, 1, 1, 0], [1] * 5]) > 0, length=5)

    @quick_jit
    def evaluate(key):
        def draw(key, rate=0.25):
            return dropped_attention(q, k, v, mask, key, rate=rate, causal=True)

        draws = jax.lax.map(draw, jax.random.split(key, 2000))
        return draws, draw(key, rate=0.0), attention(q, k, v, mask, causal=True)

    found, none, expected = map(np.asarray, evaluate(jax.random.key(1)))
    np.testing.assert_allclose(none, expected, atol=1e-6)
    error = (found.mean(axis=0) - expected) / (found.std(axis=0) / np.sqrt(2000))
    assert stats.kstest(np.ravel(error)[::3], "norm").pvalue > 1e-3
    first = found[:, 0, 0]  # its one weight, 1, is dropped or grows
    assert abs((first == 0).all(axis=2).mean() - 0.25) < 0.04
    np.testing.assert_allclose(first.max(axis=0), np.maximum(v[0, 0] / 0.75, 0), atol=1e-6)
    model = build(dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.5))
    graph, weights = nnx.split(model)
    ids = jnp.array([[1, 2, 3]])
    run = quick_jit(lambda p, key: nnx.merge(graph, p).encode(ids, key=key))
    one, two = (run(weights, jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(one, two)


def test_the_configs_of_all_architectures():
    assert set(CONFIGS) == set(ARCHITECTURES)
    for changes, message in (
        ({"positions": "rotary", "features": 6}, "rotary' needs heads of an even number .* got 3"),
        ({"embedding_features": 0}, "embedding_features must be at least 1"),
        ({"embedding_features": 8, "head": "tied"}, "embedding_features must be features for head"),
        ({"tie_embeddings": 2}, "tie_embeddings must be one of True, False"),
        ({"attention_dropout": 1.0}, "attention_dropout must be .* < 1"),
        ({"rotary_base": 0}, "rotary_base must be .* > 0"),
        ({"positions": "sinusoidal"}, "positions must be one of 'learned', 'rotary'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **changes)
