"""The KV cache: what a block is, which requests share it, and which block is evicted first.

To attend to a token, a layer needs the token's *key* and *value*, two vectors that never change
after they are computed. The KV cache stores them. It is divided into *blocks* of 16 tokens. Each
request has a *block table*, the list of its blocks. This script shows, measured in this run:

1. two prompts with the same prefix share its blocks,
2. how a chain of hashes finds such a prefix,
3. which blocks are evicted first when the pool is full,
4. how much memory blocks save over a contiguous reservation per request.

Read next: cache/block_pool.py, cache/prefix_hash.py, cache/eviction.py (in src/minimal_vllm).
Run: python examples/01_kv_cache.py
"""

from array import array
from math import ceil

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import EVICTION_STRATEGIES
from minimal_vllm.cache.prefix_hash import extend_block_hashes
from minimal_vllm.trace.step_record import StepRecord

BLOCK = 16
OPENING = (
    "The house stood at the end of the lane, behind a row of old elms, and nobody in the village "
    "could remember a time when there had been a light in its upper windows. One evening in "
    "October, when the rain had stopped at last, "
)
ENDINGS = {"A": "the postman saw one.", "B": "a carriage drew up at the gate."}


def main() -> None:
    records: list[StepRecord] = []
    llm = LLM(num_gpu_blocks_override=256, max_model_len=2048, observers=[records.append])
    encode = llm.tokenizer.encode
    prompts = {name: encode(OPENING + ending) for name, ending in ENDINGS.items()}
    show_sharing(llm, prompts, records)
    show_hashes(prompts)
    show_eviction()
    show_memory(llm, prompts["A"] + prompts["B"], records)


def show_sharing(llm: LLM, prompts: dict[str, list[int]], records: list[StepRecord]) -> None:
    print(f"1. Two prompts with the same prefix, added together. Blocks of {BLOCK} tokens:\n")
    for name, prompt in prompts.items():
        llm.engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=1))
    llm.engine.step()
    for entry in records[-1].scheduled:
        length = len(prompts[entry.request_id])
        table = [f"[{block:2} shared]" for block in entry.cached_blocks]
        table += [f"[{block:2}       ]" for block in entry.new_blocks]
        print(f"   {entry.request_id}: {length} tokens  {' '.join(table)}")
        print(
            f"      found {entry.start}, computed {entry.num_tokens}; "
            f"its last block holds {(length - 1) % BLOCK + 1} of {BLOCK}\n"
        )


def show_hashes(prompts: dict[str, list[int]]) -> None:
    print("2. The hash of a full block is sha256(hash of the block before it + its own tokens):\n")
    changed = [prompts["A"][0] + 1, *prompts["A"][1:]]
    for name, tokens in {**prompts, "A with another first token": changed}.items():
        hashes: list[bytes] = []
        extend_block_hashes(hashes, array("i", tokens), BLOCK)
        print(f"   {' → '.join(digest.hex()[:6] for digest in hashes)}   {name}")
    print("\n   Equal hashes mean equal prefixes. The pool looks hashes up in a dictionary.\n")


def show_eviction() -> None:
    print("3. A pool of 8 blocks is full of cached texts, which were used in this order:")
    print("   u0 u1, then s0 s1 s2 three times, then t0 t1 t2, then u0 u1 again.")
    print("   A new request needs all 8 blocks. They are evicted in this order:\n")
    explained = {
        "lru": "least recently used first",
        "lfu": "least frequently used first",
        "fifo": "first come, first evicted",
    }
    for strategy, make_strategy in EVICTION_STRATEGIES.items():
        pool = BlockPool(8, make_strategy())
        labels: dict[int, str] = {}
        for text in ("uu", "sss", "sss", "sss", "ttt", "uu"):
            use(pool, text, labels)
        pool.allocate(8)
        order = " ".join(labels[block] for block in pool.take_evicted())
        print(f"   {strategy:5} {order}   {explained[strategy]}")
    print("\n   The tail of a text is evicted before its head, because a tail can't be found")
    print("   without its head.\n")


def use(pool: BlockPool, text: str, labels: dict[int, str]) -> None:
    """Make the scheduler's calls for one request: find, share, allocate, store and release."""
    hashes = [text[: index + 1].encode() for index in range(len(text))]
    blocks = pool.find_prefix(hashes)
    pool.share(blocks)
    blocks += pool.allocate(len(hashes) - len(blocks))
    for index, block in enumerate(blocks):
        pool.store(block, hashes[index])
        labels[block] = f"{text[index]}{index}"
    pool.release(blocks)


def show_memory(llm: LLM, text: list[int], records: list[StepRecord]) -> None:
    lengths = [8 + 37 * index % 80 for index in range(24)]
    prompts = [text[index : index + length] for index, length in enumerate(lengths)]
    before = len(records)
    llm.generate(
        prompts, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), use_tqdm=False
    )
    peak = min(records[before:], key=lambda record: record.num_free_blocks)
    held = {entry.request_id: entry.start + entry.num_tokens for entry in peak.scheduled}
    tokens, limit = sum(held.values()), llm.built.scheduler_config.max_model_len
    in_blocks = (peak.num_blocks - peak.num_free_blocks) * BLOCK
    print(
        f"4. {len(held)} requests run at once, with {min(held.values())} to "
        f"{max(held.values())} tokens each. Reserved memory, in tokens:\n"
    )
    for how, reserved in {
        f"contiguous, {limit:,} per request": len(held) * limit,
        "contiguous, the longest length": len(held) * max(held.values()),
        f"in blocks of {BLOCK}": in_blocks,
    }.items():
        bar = "█" * ceil(40 * tokens / reserved)
        print(f"   {how:34} {reserved:7,}  {bar:░<40} {tokens / reserved:4.0%} used")
    print(f"\n   The blocks waste {in_blocks - tokens} slots, at most {BLOCK - 1} per request.")


if __name__ == "__main__":
    main()
