import re

import pytest
from checkpoints import FAMILIES, write_json

from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.generation_config import GenerationConfig
from minimal_vllm.sampling_params import SamplingParams


def read(folder, generation_config=None, eos_token_id=5):
    if generation_config is not None:
        write_json(folder / "generation_config.json", generation_config)
    config = ModelConfig.from_dict({**FAMILIES["llama"], "eos_token_id": eos_token_id})
    return GenerationConfig.from_checkpoint(folder, config)


def test_without_the_file_the_end_of_sequence_is_that_of_the_config(tmp_path):
    assert read(tmp_path) == GenerationConfig((5,), {})


@pytest.mark.parametrize(
    ("generation", "config", "merged"),
    [(7, 5, (7, 5)), ([7, 5, 9], 5, (7, 5, 9)), (None, [5, 6], (5, 6)), ([7], None, (7,))],
)
def test_ends_of_sequence_of_both_files_count(tmp_path, generation, config, merged):
    assert read(tmp_path, {"eos_token_id": generation}, config).eos_token_ids == merged


def test_sampling_defaults_are_named_as_in_sampling_params(tmp_path):
    sampling = read(
        tmp_path,
        {
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "max_new_tokens": 99,
            "do_sample": True,
            "pad_token_id": 3,
        },
    ).sampling
    params = SamplingParams(**sampling)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.6, 20, 0.95, 0.1)
    assert (params.repetition_penalty, params.max_tokens) == (1.1, 99)


def test_null_leaves_a_default_alone(tmp_path):
    assert read(tmp_path, {"temperature": None}).sampling == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"temperature": "warm"}, "temperature = 'warm': Input should be a valid number"),
        ({"top_p": 1.5}, "top_p = 1.5: Input should be less than or equal to 1"),
        ({"max_new_tokens": 0}, "max_tokens = 0: Input should be greater than or equal to 1"),
        ({"repetition_penalty": [1]}, "repetition_penalty = "),
    ],
)
def test_what_can_t_be_had_is_refused_with_the_file_s_name(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=re.escape(f"generation_config.json: {complaint}")):
        read(tmp_path, content)
