import pytest

from benchmarks import view_frames


@pytest.mark.browser
def test_every_step_of_the_run_is_played(tmp_path):
    options = ["--blocks", "300", "--requests", "5", "--steps", "12", "--results", str(tmp_path)]
    measured = view_frames.main(options)
    assert measured["steps"] == 12
    assert len(measured["drawing"]) >= 2
    assert (tmp_path / "view_frames.json").exists()
