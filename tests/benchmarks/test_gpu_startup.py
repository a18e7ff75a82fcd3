from benchmarks.gpu_startup import add_tokenizer, start_server
from minimal_vllm.demo import DEMO_MODEL_DIR


def test_a_server_is_timed_until_it_is_healthy_and_then_ended(tmp_path):
    measured = start_server("the first", DEMO_MODEL_DIR, tmp_path)
    assert measured.name == "the first"
    assert 0 < measured.healthy < 600


def test_a_checkpoint_gets_the_files_of_a_tokenizer(tmp_path):
    add_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
