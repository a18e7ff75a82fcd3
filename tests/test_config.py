import pytest

from minimal_vllm.config import EngineConfig, SchedulerConfig


def test_blocks_are_counted_up():
    config = SchedulerConfig(max_model_len=100, block_size=16)
    assert [config.blocks_for(n) for n in (0, 1, 15, 16, 17, 32, 33)] == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, r"\(8\) must be at least max_num_seqs"),
        (
            {"max_model_len": 3000, "enable_chunked_prefill": False},
            r"\(2048\) must be at least max_model_len \(3000\)",
        ),
        ({"block_size": 0}, "block_size"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"policy": "lifo"}, "policy"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**{"max_model_len": 100, **fields})


def test_limits_may_be_equal():
    SchedulerConfig(
        max_model_len=8, max_num_seqs=8, max_num_batched_tokens=8, enable_chunked_prefill=False
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int8"),
        ("device", "tpu"),
        ("attention_backend", "flash"),
        ("load_format", "gguf"),
        ("max_model_len", 0),
        ("gpu_memory_utilization", 0),
        ("gpu_memory_utilization", float("nan")),
        ("num_gpu_blocks_override", -1),
        ("max_logprobs", -2),
        ("seed", "x"),
        ("no_such_option", 1),
    ],
)
def test_a_wrong_or_unknown_option_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=field):
        EngineConfig(model="x", **{field: value})


def test_options_cannot_be_changed_once_checked():
    with pytest.raises(AttributeError):
        EngineConfig(model="x").block_size = 5
