"""Placement of a Transformer's parameters on a mesh."""

from jax.sharding import PartitionSpec

from zoo.transformer.config import TransformerConfig, embedding_width


def placement_rules(config: TransformerConfig) -> tuple[tuple[str, PartitionSpec], ...]:
    """Placement on a mesh of ``zoo.training``, as rules for ``init_state``.

    Split over ``model``: heads, inner units of the feed-forward part, rows of the vocabulary. Over
    ``fsdp``: the other axis of every matrix. Vectors of D entries are replicated.

    Args:
        config: of the model.

    Returns:
        Ordered ``(pattern, PartitionSpec)`` pairs, each of which matches a parameter.

    >>> pattern, spec = placement_rules(TransformerConfig(vocab_size=100, head="none"))[0]
    >>> pattern, tuple(spec)
    ('token_embedding$', ('model', 'fsdp'))
    """
    rules = [
        (r"token_embedding$", PartitionSpec("model", "fsdp")),
        (r"position_embedding$", PartitionSpec(None, "fsdp")),
        (r"(query|key|value)_kernel$", PartitionSpec(None, "fsdp", "model", None)),
        (r"(query|key|value)_bias$", PartitionSpec(None, "model", None)),
        (r"attention/output_kernel$", PartitionSpec(None, "model", None, "fsdp")),
        (r"expand_kernel$", PartitionSpec(None, "fsdp", "model")),
        (r"expand_bias$", PartitionSpec(None, "model")),
        (r"contract_kernel$", PartitionSpec(None, "model", "fsdp")),
    ]
    if config.positions == "rotary":
        del rules[1]
    if embedding_width(config) != config.features:
        rules += [(r"embedding_kernel$", PartitionSpec("fsdp", None))]
    if not config.tie_embeddings and config.head != "none":
        rules += [(r"output_embedding$", PartitionSpec("model", "fsdp"))]
    if config.head == "mlm":
        rules += [
            (r"head_kernel$", PartitionSpec("fsdp", None)),
            (r"^output_bias$", PartitionSpec("model")),
        ]
    if config.pooler:
        rules += [(r"pooler_kernel$", PartitionSpec("fsdp", None))]
    return tuple(rules)
