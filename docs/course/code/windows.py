"""What layers with a sliding window hold, in known shapes and in a running engine."""

from collections import Counter

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cache.layer_groups import NO_BLOCK, LayerGroups, group_layers
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.sizing import count_fitting_tokens

GIB, BLOCK = 2**30, 16
MODELS = {  # layers without a window, layers with one, the window, numbers per token and layer
    "Gemma 3 12B": (8, 40, 1024, 2 * 8 * 256),
    "Gemma 3 27B": (10, 52, 1024, 2 * 16 * 128),
    "gpt-oss-20b": (12, 12, 128, 2 * 8 * 64),
    "gpt-oss-120b": (18, 18, 128, 2 * 8 * 64),
}
LENGTH, MEMORY = 32_768, 40 * GIB
PROMPT_LENGTH, NUM_STEPS, WINDOW = 100, 200, 64


def main() -> None:
    show_what_fits()
    show_what_is_held()


def show_what_fits() -> None:
    """Count the tokens that fit into some memory, in 16 bits, in requests of one length."""
    print(f"1. Tokens that fit into {MEMORY // GIB} GiB, in requests of {LENGTH}")
    print("                  all kept    windows only          groups")
    for name, (num_full, num_sliding, window, numbers) in MODELS.items():
        layers = [None] * num_full + [window] * num_sliding
        before = fitting(group_layers(layers, max_model_len=1), numbers)
        groups = group_layers(layers, LENGTH)
        after = fitting(groups, numbers)
        print(f"   {name:13} {before:10,}      {after:10,}  {describe(groups)}")


def fitting(groups: LayerGroups, numbers_per_token: int) -> int:
    limits = SchedulerConfig(max_model_len=LENGTH, block_size=BLOCK, windows=groups.windows)
    block_bytes = 2 * numbers_per_token * BLOCK * groups.size
    return count_fitting_tokens(limits, MEMORY // block_bytes)


def describe(groups: LayerGroups) -> str:
    counts = Counter("full" if window is None else "window" for window in groups.windows)
    kinds = " + ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{kinds}, of {groups.size}"


def show_what_is_held() -> None:
    """Give four of the built-in model's six layers a window, and watch a request's blocks."""
    overrides = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
    llm = LLM(hf_overrides=overrides, num_gpu_blocks_override=128, max_model_len=512)
    greedy = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    prompt = [300 + index for index in range(PROMPT_LENGTH)]
    llm.engine.add_request("a", prompt, greedy)
    windows = llm.built.scheduler_config.windows
    print(f"\n2. Blocks of {BLOCK} tokens that one request holds; windows of the groups: {windows}")
    print("   tokens   " + "   ".join(f"group {group}" for group in range(len(windows))))
    for step in range(NUM_STEPS + 1):
        llm.engine.step()
        (request,) = llm.engine.scheduler.running
        if step % 40 == 0:
            held = [
                sum(block != NO_BLOCK for block in request.block_table[group :: len(windows)])
                for group in range(len(windows))
            ]
            print(
                f"   {request.num_computed_tokens:6}   " + "   ".join(f"{each:7}" for each in held)
            )


if __name__ == "__main__":
    main()
