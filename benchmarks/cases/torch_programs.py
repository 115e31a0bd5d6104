"""The rivals in PyTorch, eager, written for it; on a GPU if PyTorch sees one.

Functions of tensors that `benchmarks.case.make_case` knows by name, and whole programs.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import get_ema_multi_avg_fn

from zoo.extras import require
from zoo.transformer import Transformer
from zoo.transformer.architectures import write_config
from zoo.transformer.weights import state_dict

from ..measure import cores

Tensor = torch.Tensor
Thunk = Callable[[], Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(cores())
torch.set_flush_denormal(True)  # as XLA does on a CPU


def tensors(arrays: Any) -> Any:
    """Copies of a tree of arrays on the device; integers get the type that PyTorch wants."""

    def copy(array: Any) -> Tensor:
        array = np.asarray(array)
        dtype = torch.int64 if array.dtype == np.int32 else None
        return torch.tensor(array, dtype=dtype, device=DEVICE)

    return jax.tree.map(copy, arrays)


def finished(values: Any) -> Any:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return values


def make(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The function or module of this name."""
    made = globals()[name]
    if isinstance(made, type):
        return made(**options).to(DEVICE)
    return lambda *inputs: made(*inputs, **options)


def forward(function: Callable[..., Tensor], arrays: Sequence[Any]) -> Thunk:
    """The function's value, without recording for gradients."""
    inputs = tensors(arrays)

    @torch.inference_mode()
    def thunk() -> Any:
        return finished(function(*inputs))

    return thunk


def backward(
    function: Callable[..., Tensor],
    arrays: Sequence[Any],
    weights: np.ndarray | None = None,
    keeps_output: bool = False,
) -> Thunk:
    """Value, weighted sum or output, and the gradients of all inputs and parameters it uses."""
    inputs, weights = tensors((arrays, weights))
    wanted = [leaf.requires_grad_() for leaf in jax.tree.leaves(inputs) if leaf.is_floating_point()]
    wanted += getattr(function, "parameters", list)()

    def thunk() -> Any:
        y = function(*inputs)
        if keeps_output:
            gradients = torch.autograd.grad(y, wanted, weights, allow_unused=True)
            return finished((y.detach(), gradients))
        value = y if weights is None else (y * weights).sum()
        return finished((value.detach(), torch.autograd.grad(value, wanted)))

    return thunk


# averaging


def swa_utils(updates: Any, average: Any, parameters: Any) -> Any:
    """PyTorch's own average, of the parameters that the updates give, at the eleventh term."""
    update = get_ema_multi_avg_fn(1 - (1 - 0.999) / (1 - 0.999**11))
    # A copy, as our program returns a new average too.
    copies = [leaf.clone() for leaf in average.values()]
    update(copies, torch._foreach_add([*parameters.values()], [*updates.values()]), 10)
    return dict(zip(average, copies, strict=True))


# conditional


def conditional_layer_norm(
    x: Tensor, condition: Tensor, scale: Tensor, bias: Tensor, *kernels: Tensor
) -> Tensor:
    """PyTorch's fused normalisation, then gain and shift of each sample."""
    gain = torch.addmm(scale, condition, kernels[0])
    shift = torch.addmm(bias, condition, kernels[1])
    standard = functional.layer_norm(x, x.shape[-1:], eps=1e-12)
    return torch.addcmul(shift[:, None], standard, gain[:, None])


def layer_norm(x: Tensor, _: Tensor, scale: Tensor, bias: Tensor, *__: Tensor) -> Tensor:
    """PyTorch's LayerNorm, which takes no condition."""
    return functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-12)


# ordered


def cumax(x: Tensor) -> Tensor:
    """Softmax, summed along the last axis."""
    return torch.softmax(x, dim=-1).cumsum(dim=-1)


def log_cumax(x: Tensor) -> Tensor:
    """Its logarithm."""
    sums = torch.logcumsumexp(x, dim=-1)
    return sums - sums[..., -1:]


def on_lstm(params: Sequence[Tensor], xs: Tensor, *, chunk: int) -> Tensor:
    """Hidden states ``[T, B, D]`` of an ON-LSTM from zeros; the columns are `OnLstmParams`'s.

    The input product is hoisted out of the loop, the four gates share one product, master gates
    are broadcast over their chunk.
    """
    input_kernel, recurrent_kernel, bias = params
    time, batch, _ = xs.shape
    units = recurrent_kernel.shape[0]
    levels = units // chunk
    projected = torch.addmm(bias, xs.flatten(0, 1), input_kernel).view(time, batch, -1)
    hidden, cell = xs.new_zeros(batch, units), xs.new_zeros(batch, levels, chunk)
    states = []
    for row in projected:
        gates = torch.addmm(row, hidden, recurrent_kernel)
        master_input, master_forget, rest = gates.split((levels, levels, 4 * units), dim=1)
        output, candidate, inner, keep = rest.view(batch, 4, levels, chunk).unbind(1)
        master_forget = cumax(master_forget)[..., None]
        master_input = 1 - cumax(master_input)[..., None]
        overlap = master_forget * master_input
        kept = torch.sigmoid(keep) * overlap + (master_forget - overlap)
        written = torch.sigmoid(inner) * overlap + (master_input - overlap)
        cell = kept * cell + written * torch.tanh(candidate)
        hidden = (torch.sigmoid(output) * torch.tanh(cell)).flatten(1)
        states.append(hidden)
    return torch.stack(states)


class Lstm(nn.LSTM):
    """PyTorch's own LSTM of one layer, time first: its hidden states."""

    def __init__(self, *, inputs: int, units: int):
        super().__init__(inputs, units)

    def forward(self, xs: Tensor) -> Tensor:
        """Hidden states ``[T, B, D]``."""
        return super().forward(xs)[0]


def language_model(params: Sequence[Tensor], ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a stack of ON-LSTMs with tied word vectors.

    Params: bias and table of the words, then bias, input and recurrent kernel of each layer.
    """
    shift, table, *layers = params
    xs = functional.embedding(ids.T, table)
    for bias, input_kernel, recurrent_kernel in zip(*[iter(layers)] * 3, strict=True):
        xs = on_lstm((input_kernel, recurrent_kernel, bias), xs, chunk=10)
    logits = torch.addmm(shift, xs.transpose(0, 1).flatten(0, 1), table.T)
    return functional.cross_entropy(logits, targets.flatten())


# orthogonal: the formulas as their authors' code writes them


def distance(w: Tensor) -> Tensor:
    """WᵀW - I."""
    return w.T @ w - torch.eye(w.shape[1], device=w.device)


def soft(w: Tensor) -> Tensor:
    """‖WᵀW - I‖²."""
    return distance(w).square().sum()


def off_diagonal(w: Tensor) -> Tensor:
    """‖(WᵀW) ∘ (1 - I)‖²."""
    return ((w.T @ w) * (1 - torch.eye(w.shape[1], device=w.device))).square().sum()


def mutual_coherence(w: Tensor) -> Tensor:
    """The largest entry of |WᵀW - I|."""
    return distance(w).abs().max()


def spectral(w: Tensor) -> Tensor:
    """‖WᵀW - I‖ by ten power iterations on the matrix itself, from our start."""
    matrix = distance(w)
    start = np.random.default_rng(0).normal(size=w.shape[1]).astype(np.float32)
    with torch.no_grad():
        vector = torch.tensor(start, device=w.device)
        for _ in range(10):
            vector = functional.normalize(matrix @ vector, dim=0)
    return (matrix @ vector).norm()


def correlation(y: Tensor) -> Tensor:
    """V of soft signs of sharpness 10."""
    u = functional.normalize(torch.tanh(10 * y), dim=0)
    return u.T @ u


def self_orthogonality(y: Tensor) -> Tensor:
    """The literal sums with weights 100 and 1."""
    pairs = correlation(y) * (1 - torch.eye(y.shape[1], device=y.device))
    return 100 * pairs.sum() ** 2 + pairs.square().sum()


def angles(w: Tensor) -> Tensor:
    """Degrees of all pairs."""
    u = functional.normalize(w, dim=0)
    first, second = torch.triu_indices(w.shape[1], w.shape[1], 1, device=w.device)
    return torch.rad2deg(torch.arccos((u.T @ u)[first, second].clamp(-1, 1)))


def convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """3 × 3 positions, the sides padded; NHWC and HWIO in, NHWC out, as views."""
    y = functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1)
    return y.permute(0, 2, 3, 1)


# energy: channels first, as PyTorch's convolutions want it, padded as TensorFlow does. In
# evaluation mode the vectors of the spectral normalisation stay; kernels are normalised once per
# chain.


def energy_network(features: int) -> nn.Module:
    """Four convolutions and two linear layers for images ``[B, 1, 28, 28]``."""
    f, normalize = features, parametrizations.spectral_norm

    def convolution(before: int, after: int, size: int, **options: int) -> list[nn.Module]:
        layer = nn.Conv2d(before, after, size, bias=False, **options)
        return [normalize(layer), nn.LeakyReLU(0.2)]

    return nn.Sequential(
        *convolution(1, f, 3, padding=1),
        *convolution(f, f, 4, stride=2, padding=1),
        *convolution(f, 2 * f, 4, stride=2, padding=1),
        nn.ZeroPad2d((1, 2, 1, 2)),
        *convolution(2 * f, 4 * f, 4, stride=2),
        nn.Flatten(),
        normalize(nn.Linear(64 * f, 2 * f)),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * f, 1),
    ).to(DEVICE)


def run_chain(network: nn.Module, x: Tensor, num_steps: int) -> Tensor:
    """The chain of the original: noise, gradient, clip, box."""
    network.eval().requires_grad_(False)
    with parametrize.cached():
        for _ in range(num_steps):
            x = (x + 0.005 * torch.randn_like(x)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(network(x).sum(), x)
            x = (x.detach() - 10 * gradient.clamp(-0.01, 0.01)).clamp(0, 1)
    return x


def langevin_chain(_: np.ndarray, start: np.ndarray, *, features: int, num_steps: int) -> Thunk:
    """The chain's end."""
    network, first = energy_network(features), tensors(start).permute(0, 3, 1, 2).contiguous()
    return lambda: finished(run_chain(network, first, num_steps))


def energy_step(images: np.ndarray, start: np.ndarray, *, features: int, num_steps: int) -> Thunk:
    """A step of training: chain, loss, gradient, clipped Adam without a first moment."""
    network = energy_network(features)
    data, first = (tensors(x).permute(0, 3, 1, 2).contiguous() for x in (images, start))
    parameters = [*network.parameters()]
    decay = 0.999
    optimizer = torch.optim.Adam(parameters, 3e-4, betas=(0.0, decay))

    def thunk() -> Any:
        samples = run_chain(network, first, num_steps)
        network.train().requires_grad_(True)
        plus, minus = network(torch.cat([data, samples])).chunk(2)
        loss = plus.mean() - minus.mean() + plus.square().mean() + minus.square().mean()
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters:
            moments = optimizer.state[parameter]
            square = moments.get("exp_avg_sq", torch.zeros((), device=DEVICE))
            correction = 1 - decay ** (float(moments.get("step", 0)) + 1)
            bound = 3 * (square / correction).sqrt() + 0.1
            parameter.grad.clamp_(-bound, bound)
        optimizer.step()
        return finished((loss.detach(), samples))

    return thunk


# transformer and decoding: Hugging Face's BERT


def load_bert(kind: str, model: Transformer, **options: Any) -> Any:
    """Their model with the weights of ours, and PyTorch's own attention kernel."""
    transformers = require("transformers", "bench")
    config = json.loads(write_config(model.config, "bert")) | {"attn_implementation": "sdpa"}
    theirs = getattr(transformers, kind)(transformers.BertConfig(**config | options))
    given = {name: torch.tensor(value) for name, value in state_dict(model).items()}
    missing, unexpected = theirs.load_state_dict(given, strict=False)
    if unexpected or any("decoder" not in name for name in missing):
        raise ValueError(f"weights do not fit: {missing=}, {unexpected=}")
    theirs.tie_weights()
    return theirs.to(DEVICE)


def bert_step(model: Transformer, ids: Any, targets: Any, weights: Any) -> Thunk:
    """The mean loss over weighted positions and the norm of its gradient."""
    theirs = load_bert("BertForMaskedLM", model).train()
    # The loss of transformers is the mean over targets other than -100.
    inputs, labels = tensors((ids, np.where(weights > 0, targets, np.int32(-100))))
    parameters = list(theirs.parameters())

    def thunk() -> Any:
        loss = theirs(input_ids=inputs, labels=labels).loss
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return loss.detach().cpu().numpy(), norm.cpu().numpy()

    return thunk


def bert_greedy(model: Transformer, prompt: Any, mask: Any = None, *, new_tokens: int) -> Thunk:
    """The most probable next tokens ``[B, new_tokens]`` under a causal mask."""
    options = {"is_decoder": True, "bos_token_id": None, "eos_token_id": None}
    theirs, inputs = load_bert("BertLMHeadModel", model, **options).eval(), tensors(prompt)
    given = torch.ones_like(inputs) if mask is None else tensors(mask).to(inputs)

    def thunk() -> Any:
        with torch.inference_mode():
            tokens = theirs.generate(
                inputs,
                attention_mask=given,
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return tokens[:, inputs.shape[1] :].to(torch.int32).cpu().numpy()

    return thunk
