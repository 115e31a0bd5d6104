import numpy as np
import pytest
from flax import nnx

from tests.battery import quick_jit
from zoo.ordered import OnLstmLanguageModel
from zoo.ordered.original import load_original, original_parameter_count

V, E, H, C = 7, 4, 6, 2


def build(**options):
    return OnLstmLanguageModel(V, E, H, 2, chunk_size=C, rngs=nnx.Rngs(0), **options)


@pytest.fixture
def arrays():
    """Random arrays under the names and in the shapes of the original's state dict."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(V, E))
    named = {"encoder.weight": table, "decoder.weight": table}
    named["decoder.bias"] = generator.normal(size=V)
    for number, (inputs, units) in enumerate([(E, H), (H, E)]):
        rows = 4 * units + 2 * (units // C)
        cell = f"rnn.cells.{number}"
        named[f"{cell}.ih.0.weight"] = generator.normal(size=(rows, inputs))
        named[f"{cell}.ih.0.bias"] = generator.normal(size=rows)
        named[f"{cell}.hh.weight"] = generator.normal(size=(rows, units))
        named[f"{cell}.hh.bias"] = generator.normal(size=rows)
    return named


def original_logits(arrays, ids, *, recurrent_dropout):
    """The original in evaluation: row-major linear maps, gates in its own packing."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)  # noqa: E731
    layers = []
    for number in range(2):
        cell = f"rnn.cells.{number}"
        names = ("ih.0.weight", "ih.0.bias", "hh.weight", "hh.bias")
        layers.append([arrays[f"{cell}.{name}"] for name in names])
    states = [(np.zeros(w.shape[1]), np.zeros((w.shape[1] // C, C))) for _, _, w, _ in layers]
    logits = []
    for word in ids:
        x = arrays["encoder.weight"][word]
        for number, (w_ih, b_ih, w_hh, b_hh) in enumerate(layers):
            hidden, memory = states[number]
            gates = w_ih @ x + b_ih + (1 - recurrent_dropout) * w_hh @ hidden + b_hh
            levels = len(memory)
            master_in = 1 - np.cumsum(softmax(gates[:levels]))[:, None]
            master_forget = np.cumsum(softmax(gates[levels : 2 * levels]))[:, None]
            packed = gates[2 * levels :].reshape(4 * levels, C)
            output, candidate, inner, forget = np.split(packed, 4)
            overlap = master_in * master_forget
            forget = sigmoid(forget) * overlap + master_forget - overlap
            inner = sigmoid(inner) * overlap + master_in - overlap
            memory = forget * memory + inner * np.tanh(candidate)
            x = (sigmoid(output) * np.tanh(memory)).ravel()
            states[number] = x, memory
        logits.append(arrays["encoder.weight"] @ x + arrays["decoder.bias"])
    return np.array(logits)


def test_logits_are_those_of_the_original(arrays, double_precision):
    model = build(recurrent_dropout=0.45, inverted_weight_drop=False, param_dtype=np.float64)
    load_original(model, arrays)
    ids = np.array([[1, 2, 6, 0, 3]])
    logits = quick_jit(lambda model: nnx.merge(*model)(ids).logits)(nnx.split(model))
    expected = original_logits(arrays, ids[0], recurrent_dropout=0.45)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-9, atol=1e-9)


def test_parameters_as_the_original_counts_them(arrays):
    given = sum(array.size for name, array in arrays.items() if name != "decoder.weight")
    assert original_parameter_count(build()) == given


def test_copies_of_the_recurrent_weights_are_passed_over(arrays):
    model = build()
    arrays["rnn.cells.0.hh._weight"] = arrays["rnn.cells.0.hh.weight"]
    del arrays["decoder.weight"]
    load_original(model, arrays)
    np.testing.assert_array_equal(model.embedding[...], arrays["encoder.weight"].astype(np.float32))


def test_names_and_shapes_that_do_not_fit_are_all_listed(arrays):
    model = build()
    before = np.array(model.embedding[...])
    arrays["encoder.wait"] = arrays.pop("rnn.cells.1.hh.bias")
    arrays["decoder.bias"] = np.zeros(V + 1)
    message = (
        r"missing: rnn\.cells\.1\.hh\.bias; left over: encoder\.wait; "
        r"decoder\.bias: expected shape \(7,\), got \(8,\)"
    )
    with pytest.raises(ValueError, match=message):
        load_original(model, arrays)
    np.testing.assert_array_equal(model.embedding[...], before)


def test_untied_words_and_other_gates_are_refused(arrays):
    with pytest.raises(ValueError, match="'complement', got a model with 'reverse'"):
        load_original(build(master_input="reverse"), arrays)
    arrays["decoder.weight"] = arrays["decoder.weight"] + 1
    with pytest.raises(ValueError, match="expected tied weights"):
        load_original(build(), arrays)
