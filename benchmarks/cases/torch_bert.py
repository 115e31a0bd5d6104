"""The rival of `zoo.transformer`: Hugging Face's BERT in PyTorch, with its own attention kernel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.measure import cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(cores())
torch.set_flush_denormal(True)  # as XLA does on a CPU


def gradient_step(
    tensors: dict[str, Any], ids: Any, targets: Any, weights: Any, **config: Any
) -> Callable[[], Any]:
    """A thunk of the mean loss over weighted positions and the norm of its gradient."""
    options = transformers.BertConfig(
        **config,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.BertForMaskedLM(options)
    given = {name: torch.tensor(value) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    if unexpected or any("decoder" not in name for name in missing):
        raise ValueError(f"weights do not fit: {missing=}, {unexpected=}")
    model.tie_weights()
    model = model.to(DEVICE).train()
    inputs = torch.tensor(np.asarray(ids), dtype=torch.int64, device=DEVICE)
    # The loss of transformers is the mean over targets other than -100.
    wanted = np.where(np.asarray(weights) > 0, np.asarray(targets), -100)
    labels = torch.tensor(wanted, dtype=torch.int64, device=DEVICE)
    parameters = list(model.parameters())

    def thunk() -> Any:
        loss = model(input_ids=inputs, labels=labels).loss
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return loss.detach().cpu().numpy(), norm.cpu().numpy()

    return thunk
