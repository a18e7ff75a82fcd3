"""Published results for four ideas, and measurements of the same ideas with this engine.

The published numbers come from the papers' abstracts or, for Kwon et al., from the sections named.
They belong to other models, machines and baselines; each claim says what differs here. All requests
arrive at once, so the engine is never idle and its full load is compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from minimal_vllm_lab.ablate.ideas import ALL_ON, DECLARED, IDEAS, Idea
from minimal_vllm_lab.ablate.study import Measure, config_without
from minimal_vllm_lab.bench.statistics import Fields
from minimal_vllm_lab.sim.config import SimulationConfig, SyntheticConfig, TrafficConfig

PLENTY = {"num_gpu_blocks_override": 1000, "max_model_len": 2048}
"""Engine options under which memory is not scarce."""


@dataclass(frozen=True)
class Claim:
    """Claim of one paper, and an experiment that checks it with this engine."""

    title: str
    """Claim in one sentence."""
    source: str
    """Paper that makes the claim."""
    published: str
    """Published numbers."""
    here: str
    """Differences between the paper's experiment and this one."""
    traffic: SyntheticConfig
    """Requests of the experiment."""
    limits: dict[str, Any]
    """Fields of ``EngineConfig`` to set for the experiment."""
    variants: dict[str, Idea] = field(default_factory=dict)
    """Ideas to switch off, one per variant, by the name of the older system that lacks the idea."""
    measured: Callable[[Fields, Fields], str] = lambda _, __: ""
    """Function of the complete engine's result and a variant's result, which describes the latter
    in words."""


def _memory(_: Fields, result: Fields) -> str:
    shares = result["kv_shares"]
    if not shares:
        return "no request had to wait for memory"
    return (
        f"{shares['tokens']:.1%} tokens, {shares['reserved']:.1%} reserved for later, "
        f"{shares['never_used']:.1%} never used, {shares['free']:.1%} free; "
        f"{result['kv_waste']:.1%} of the held slots wasted; "
        f"{result['mean_running']:.1f} running requests"
    )


def _throughput(full: Fields, result: Fields) -> str:
    ratio = full["output_throughput"] / result["output_throughput"]
    compared = "" if result is full else f" ({ALL_ON}: {ratio:.2f} times as much)"
    return f"{result['output_throughput']:,.0f} tokens/s{compared}"


def _tails(full: Fields, result: Fields) -> str:
    return (
        f"{_throughput(full, result)}; inter-token latency "
        f"{result['median_itl_ms']:.3g} ms (median), {result['p99_itl_ms']:.3g} ms (p99)"
    )


def _hits(full: Fields, result: Fields) -> str:
    return f"{_throughput(full, result)}; {result['prefix_cache_hit_rate']:.0%} cache hits"


CLAIMS = {
    "memory": Claim(
        title="Paging leaves almost no memory unused",
        source="Kwon et al., PagedAttention, SOSP 2023, sections 1 and 6.2, figure 2",
        published="in existing systems only 20.4 % (Orca (Max)) to 38.2 % (Orca (Oracle)) of the "
        "KV cache holds tokens, in vLLM 96.3 %; vLLM runs 4.3 times as many requests at once as "
        "Orca (Max) and 2.2 times as many as Orca (Oracle); vLLM's announcement (2023) says that "
        "60 % to 80 % of the memory is wasted, and under 4 % with paging",
        here="lognormal lengths with the means of ShareGPT (161 in, 338 out) instead of its "
        "conversations; as many slots as a 13B model has on 40 GB; first fit instead of a buddy "
        "allocator; measured while requests wait for memory",
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
        here="throughput of a fully loaded engine, without a latency limit; the static baseline is "
        "this engine, which streams answers and computes nothing for requests that have ended",
        traffic=SyntheticConfig(num_prompts=64, input_len=64, output_len=96),
        limits={"max_num_seqs": 16, "max_num_batched_tokens": 1024} | PLENTY,
        variants={"static batching": IDEAS["continuous-batching"]},
        measured=_throughput,
    ),
    "chunks": Claim(
        title="Chunked prefill keeps new prompts from stalling decodes",
        source="Agrawal et al., Sarathi-Serve, OSDI 2024",
        published="2.6 times the serving capacity of vLLM within limits on tail latency (Mistral "
        "7B), 3.7 times (Yi 34B)",
        here="inter-token latency at full load instead of the capacity within a latency limit; "
        "without chunks, a prompt still shares its step with the decodes",
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
        here="one kind of traffic, similar to few-shot prompts: 512 shared and 32 own tokens in, "
        "16 out; the baseline is this engine without prefix caching",
        traffic=SyntheticConfig(num_prompts=64, input_len=32, output_len=16, prefix_len=512),
        limits={"max_num_seqs": 16, "max_num_batched_tokens": 1024} | PLENTY,
        variants={"no prefix caching": IDEAS["prefix-caching"]},
        measured=_hits,
    ),
}
"""Claims by name."""


def settings(claim: Claim, config: SimulationConfig) -> SimulationConfig:
    """Return the configuration with the claim's engine options and traffic."""
    return replace(
        config,
        engine=replace(config.engine, **claim.limits),
        traffic=TrafficConfig(),
        synthetic=claim.traffic,
    )


def run_claim(claim: Claim, config: SimulationConfig, measure: Measure) -> Iterator[Fields]:
    """Run a claim's variants; yield a result for each, with the complete engine first.

    Each result has the measured numbers, the variant's name as ``system``, and a summary in words
    as ``measured``.

    Args:
        claim: claim to check.
        config: configuration from ``settings``, with all automatic choices made by
            ``Stage.settle``.
        measure: serves the workload and returns the numbers.
    """
    full = measure(config, ())
    yield {"system": ALL_ON, "measured": claim.measured(full, full), **full}
    for name, idea in claim.variants.items():
        result = measure(config_without(config, idea), ())
        yield {"system": name, "measured": claim.measured(full, result), **result}
