"""What papers say that the ideas are worth, and the same measured here.

The published numbers are those of the papers' abstracts or, for Kwon et al., of the sections named.
They belong to other models, machines and baselines; each claim says what is different here. All
requests come at once, so that the engine is never idle: what is compared is how it is kept busy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from minimal_vllm_lab.ablate.ideas import ALL_ON, DECLARED, IDEAS, Idea
from minimal_vllm_lab.ablate.study import Measure, config_without
from minimal_vllm_lab.bench.statistics import Fields
from minimal_vllm_lab.sim.config import SimulationConfig, SyntheticConfig, TrafficConfig

PLENTY = {"num_gpu_blocks_override": 1000, "max_model_len": 2048}
"""Memory is not what is short."""


@dataclass(frozen=True)
class Claim:
    """One paper's, and how to see whether it holds here."""

    title: str
    source: str
    published: str
    here: str
    """What is different."""
    traffic: SyntheticConfig
    limits: dict[str, Any]
    """Fields of ``EngineConfig``."""
    variants: dict[str, Idea] = field(default_factory=dict)
    """What to compare with the engine as it is: an idea switched off, by the name of the system
    that had not got it."""
    measured: Callable[[Fields, Fields], str] = lambda _, __: ""
    """What one of them comes to: given the engine's numbers, and its."""


def _memory(_: Fields, result: Fields) -> str:
    shares = result["kv_shares"]
    if not shares:
        return "nobody had to wait for memory"
    return (
        f"{shares['tokens']:.1%} tokens, {shares['reserved']:.1%} reserved for later, "
        f"{shares['never_used']:.1%} never used, {shares['free']:.1%} free; "
        f"waste in what is held: {result['kv_waste']:.1%}; "
        f"{result['mean_running']:.1f} requests at once"
    )


def _throughput(full: Fields, result: Fields) -> str:
    ratio = full["output_throughput"] / result["output_throughput"]
    compared = "" if result is full else f" ({ALL_ON}: {ratio:.2f} times as many)"
    return f"{result['output_throughput']:,.0f} tokens/s{compared}"


def _tails(full: Fields, result: Fields) -> str:
    return (
        f"{_throughput(full, result)}, between two tokens "
        f"{result['median_itl_ms']:.3g} ms in the median, {result['p99_itl_ms']:.3g} ms at p99"
    )


def _hits(full: Fields, result: Fields) -> str:
    return f"{_throughput(full, result)}, {result['prefix_cache_hit_rate']:.0%} hits"


CLAIMS = {
    "memory": Claim(
        title="Paging leaves next to no memory unused",
        source="Kwon et al., PagedAttention, SOSP 2023, sections 1 and 6.2, figure 2",
        published="only 20.4 % (Orca (Max)) to 38.2 % (Orca (Oracle)) of the KV cache holds tokens "
        "in existing systems, 96.3 % in vLLM, with 4.3 times as many requests at once as in Orca "
        "(Max) and 2.2 times as many as in Orca (Oracle); by vLLM's announcement (2023), 60 % to "
        "80 % are wasted, and under 4 % with paging",
        here="lognormal lengths with the means of ShareGPT (161 in, 338 out) in place of its "
        "conversations; as many slots as a 13B model has on 40 GB; first fit in place of a buddy "
        "allocator; counted while somebody waits for memory",
        traffic=SyntheticConfig(num_prompts=80, input_len=161, output_len=338),
        limits={
            "num_gpu_blocks_override": 983,
            "max_model_len": 2048,
            "max_num_batched_tokens": 2048,
            "enable_prefix_caching": False,
        },
        variants={"Orca (Max)": IDEAS["paging"], "Orca (Oracle)": DECLARED},
        measured=_memory,
    ),
    "batching": Claim(
        title="Continuous batching beats static batching",
        source="Yu et al., Orca, OSDI 2022",
        published="36.9 times the throughput of FasterTransformer at the same latency (GPT-3 175B)",
        here="throughput of a full engine, at no particular latency; the static one is this "
        "engine, which computes nothing in the places of those that have ended, and streams",
        traffic=SyntheticConfig(num_prompts=64, input_len=64, output_len=96),
        limits={"max_num_seqs": 16, "max_num_batched_tokens": 1024} | PLENTY,
        variants={"static batching": IDEAS["continuous-batching"]},
        measured=_throughput,
    ),
    "chunks": Claim(
        title="Chunked prefill keeps new prompts from stalling those that decode",
        source="Agrawal et al., Sarathi-Serve, OSDI 2024",
        published="2.6 times the serving capacity of vLLM within limits on tail latency (Mistral "
        "7B), 3.7 times (Yi 34B)",
        here="not the capacity within a limit, but what the limit is for: the time between two "
        "tokens, at full load; without chunks a prompt still shares its step with the decodes",
        traffic=SyntheticConfig(num_prompts=32, input_len=800, output_len=64),
        limits={"max_num_seqs": 12, "max_num_batched_tokens": 128} | PLENTY,
        variants={"whole prompts": IDEAS["chunked-prefill"]},
        measured=_tails,
    ),
    "sharing": Claim(
        title="Shared prefixes need not be computed twice",
        source="Zheng et al., SGLang, NeurIPS 2024",
        published="up to 6.4 times the throughput of other systems, on agents, few-shot prompts, "
        "retrieval and chat",
        here="one kind of traffic, as few-shot prompts have it: 512 tokens shared by all, 32 of a "
        "request's own, 16 out; the baseline is this engine, only without the cache",
        traffic=SyntheticConfig(num_prompts=64, input_len=32, output_len=16, prefix_len=512),
        limits={"max_num_seqs": 16, "max_num_batched_tokens": 1024} | PLENTY,
        variants={"no prefix caching": IDEAS["prefix-caching"]},
        measured=_hits,
    ),
}


def settings(claim: Claim, config: SimulationConfig) -> SimulationConfig:
    """The engine within the claim's limits, and its traffic."""
    return replace(
        config,
        engine=replace(config.engine, **claim.limits),
        traffic=TrafficConfig(),
        synthetic=claim.traffic,
    )


def run_claim(claim: Claim, config: SimulationConfig, measure: Measure) -> Iterator[Fields]:
    """Results as they come: of the engine as it is, then of the older ways.

    Each has what it comes to, in words, as ``measured``.

    Args:
        claim: the one.
        config: its ``settings``, settled.
        measure: see ``Stage``.
    """
    full = measure(config, ())
    yield {"system": ALL_ON, "measured": claim.measured(full, full), **full}
    for name, idea in claim.variants.items():
        result = measure(config_without(config, idea), ())
        yield {"system": name, "measured": claim.measured(full, result), **result}
