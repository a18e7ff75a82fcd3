"""Arguments of vLLM's ``SamplingParams``, ``generate`` and ``chat`` that are not supported."""

from minimal_vllm.vllm_arguments.unsupported import (
    ANYTHING,
    OFF,
    ON_OR_OFF,
    Unsupported,
    by_name,
)

SAMPLING = by_name(
    Unsupported("every completion is returned, so set n", {"best_of": (1,)}),
    Unsupported(
        "completions are sampled; use LLM.beam_search",
        {"use_beam_search": OFF, "length_penalty": (1,), "early_stopping": OFF},
    ),
    Unsupported("use structured_outputs", {"guided_decoding": ()}),
    Unsupported("use logit_bias, or a sampler of your own", {"logits_processors": ()}),
    Unsupported("no extension reads further arguments", {"extra_args": ()}),
    Unsupported("shorten the prompt yourself", {"truncate_prompt_tokens": ()}),
    Unsupported(
        "log-probabilities are a sequence with one dictionary per token, of the top tokens",
        {
            "flat_logprobs": OFF,
            "prompt_logprob_token_ids": (),
            "prompt_logprob_start": (0,),
        },
    ),
    Unsupported(
        "set cache_salt in the prompt to compute it without the cache of others",
        {"skip_reading_prefix_cache": OFF},
    ),
    Unsupported("limit the output with max_tokens", {"thinking_token_budget": ()}),
    Unsupported("use frequency_penalty or repetition_penalty", {"repetition_detection": ()}),
    Unsupported("outputs carry no watermark", {"watermarking": OFF}),
    Unsupported(
        "which experts computed a token is not returned", {"routed_experts_prompt_start": (0,)}
    ),
    Unsupported("tokens are sampled, not replayed", {"trace_decode_token_ids": ()}),
    Unsupported(
        "text is decoded as Hugging Face's fast tokenizers do",
        {"spaces_between_special_tokens": ON_OR_OFF},
    ),
    Unsupported(
        "LLM returns outputs once they are finished, and the server streams them by itself",
        {
            "output_kind": ANYTHING,
            "stream_interval": (1,),
            "skip_clone": ON_OR_OFF,
            "output_text_buffer_length": ANYTHING,
        },
    ),
)
"""Unsupported features, by argument of ``SamplingParams``."""

REQUEST = by_name(
    Unsupported(
        "LoRA adapters can't be loaded; merge the adapter into the checkpoint",
        {"lora_request": ()},
    ),
    Unsupported("encode the prompt yourself, and give token ids", {"tokenization_kwargs": ()}),
    Unsupported("models read text only", {"mm_processor_kwargs": ()}),
)
"""Unsupported features, by argument of ``LLM.generate`` and ``LLM.chat``."""

BEAM_SEARCH = by_name(
    Unsupported("beam search samples nothing", {"temperature": (0,)}),
    Unsupported("beams end at the end-of-sequence token only", {"include_stop_str_in_output": OFF}),
)
"""Unsupported features, by argument of ``BeamSearchParams``."""

BEAM_SEARCH_REQUEST = {
    **REQUEST,
    **by_name(Unsupported("the scheduler admits what fits", {"concurrency_limit": ANYTHING})),
}
"""Unsupported features, by argument of ``LLM.beam_search``."""
