"""The rival of `zoo.transformer` and `zoo.decoding`: Hugging Face's BERT in PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.measure import cores
from zoo.transformer import Transformer
from zoo.transformer.bert_weights import FIELDS, bert_state_dict

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(cores())
torch.set_flush_denormal(True)  # as XLA does on a CPU


def load(kind: Any, model: Transformer, **options: Any) -> Any:
    """Their model with the weights of ours, and PyTorch's own attention kernel."""
    config = {theirs: getattr(model.config, ours) for ours, theirs in FIELDS.items()}
    config |= {"attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}
    theirs = kind(transformers.BertConfig(**config, **options))
    given = {name: torch.tensor(value) for name, value in bert_state_dict(model).items()}
    missing, unexpected = theirs.load_state_dict(given, strict=False)
    if unexpected or any("decoder" not in name for name in missing):
        raise ValueError(f"weights do not fit: {missing=}, {unexpected=}")
    theirs.tie_weights()
    return theirs.to(DEVICE)


def on_device(array: Any) -> Any:
    return torch.tensor(np.asarray(array), dtype=torch.int64, device=DEVICE)


def gradient_step(model: Transformer, ids: Any, targets: Any, weights: Any) -> Callable[[], Any]:
    """A thunk of the mean loss over weighted positions and the norm of its gradient."""
    theirs = load(transformers.BertForMaskedLM, model).train()
    inputs = on_device(ids)
    # The loss of transformers is the mean over targets other than -100.
    labels = on_device(np.where(np.asarray(weights) > 0, np.asarray(targets), -100))
    parameters = list(theirs.parameters())

    def thunk() -> Any:
        loss = theirs(input_ids=inputs, labels=labels).loss
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return loss.detach().cpu().numpy(), norm.cpu().numpy()

    return thunk


def greedy(model: Transformer, prompt: Any, *, new_tokens: int) -> Callable[[], Any]:
    """A thunk of the most probable next tokens [B, new_tokens] under a causal mask."""
    options = {"is_decoder": True, "bos_token_id": None, "eos_token_id": None}
    theirs = load(transformers.BertLMHeadModel, model, **options).eval()
    inputs = on_device(prompt)

    def thunk() -> Any:
        with torch.inference_mode():
            tokens = theirs.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return tokens[:, inputs.shape[1] :].to(torch.int32).cpu().numpy()

    return thunk
