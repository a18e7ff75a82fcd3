"""Checking that a draft model or an EAGLE-3 head can guess for a model. No torch here."""

from minimal_vllm.engine.sizing import choose_groups
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.eagle_config import EagleConfig


def check_draft_fits(name: str, draft: ModelConfig, target: ModelConfig, model_len: int) -> None:
    """Check that a draft model can guess for a model, and share its block tables.

    Args:
        name: name of the draft model.
        draft: its hyperparameters.
        target: hyperparameters of the model.
        model_len: maximum length of a request.

    Raises:
        ValueError: the draft model can't guess for the model.
    """
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"the draft model {name} has a vocabulary of {draft.vocab_size:,} tokens, but the "
            f"model has {target.vocab_size:,}: choose a draft model with the same tokenizer"
        )
    if draft.max_positions < model_len:
        raise ValueError(
            f"the draft model {name} has only {draft.max_positions} positions, but max_model_len "
            f"is {model_len}: lower max_model_len"
        )
    if choose_groups(target, model_len).windows[0] is not None:
        raise ValueError(
            "all layers of the model have a sliding window, so a draft model can't share its block "
            "tables: use the method ngram"
        )
    if choose_groups(draft, model_len).windows != (None,):
        raise ValueError(
            f"layers of the draft model {name} have a sliding window, so it can't share the "
            f"model's block tables: choose one without windows, or the method ngram"
        )


def check_eagle_fits(name: str, head: EagleConfig, target: ModelConfig, model_len: int) -> None:
    """Check that an EAGLE-3 head was made for a model, and can share its block tables.

    Args:
        name: name of the head.
        head: its hyperparameters.
        target: hyperparameters of the model.
        model_len: maximum length of a request.

    Raises:
        ValueError: the head was made for another model, or can't share the block tables.
    """
    own, other = head.target_hidden_size, target.hidden_size
    if own != other:
        raise ValueError(
            f"the EAGLE-3 head {name} reads hidden states of {own:,} numbers, but the model's have "
            f"{other:,}: it is a head of another model"
        )
    if head.layer.vocab_size != target.vocab_size:
        raise ValueError(
            f"the EAGLE-3 head {name} is for a vocabulary of {head.layer.vocab_size:,} tokens, but "
            f"the model has {target.vocab_size:,}: it is a head of another model"
        )
    if not head.has_embedding and head.layer.hidden_size != target.hidden_size:
        raise ValueError(
            f"the EAGLE-3 head {name} has no embed_tokens.weight, and its hidden size is "
            f"{head.layer.hidden_size:,}, so it can't use the model's embedding, of "
            f"{target.hidden_size:,}"
        )
    layers = head.layers_of(target.num_layers)
    if not all(1 <= layer < target.num_layers for layer in layers):
        raise ValueError(
            f"the EAGLE-3 head {name} reads the hidden states after layers "
            f"{', '.join(map(str, layers))}, but the model has {target.num_layers} layers, of "
            f"which the last can't be read"
        )
    if choose_groups(target, model_len).windows[0] is not None:
        raise ValueError(
            "all layers of the model have a sliding window, so an EAGLE-3 head can't share its "
            "block tables: use the method ngram"
        )
