"""The rival of `zoo.decoding`: Hugging Face's ``generate`` in PyTorch, with its cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.measure import cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(cores())
torch.set_flush_denormal(True)  # as XLA does on a CPU


def greedy(
    tensors: dict[str, Any], prompt: Any, *, new_tokens: int, **config: Any
) -> Callable[[], Any]:
    """A thunk of the likeliest next tokens [B, new_tokens] of a BERT that looks back alone."""
    options = transformers.BertConfig(
        **config, is_decoder=True, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None
    )
    model = transformers.BertLMHeadModel(options)
    given = {name: torch.tensor(value) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    if unexpected or any("decoder" not in name for name in missing):
        raise ValueError(f"weights do not fit: {missing=}, {unexpected=}")
    model.tie_weights()
    model = model.to(DEVICE).eval()
    inputs = torch.tensor(np.asarray(prompt), dtype=torch.int64, device=DEVICE)

    def thunk() -> Any:
        with torch.inference_mode():
            tokens = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return tokens[:, inputs.shape[1] :].to(torch.int32).cpu().numpy()

    return thunk
