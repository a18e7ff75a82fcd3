import subprocess
import sys

from benchmarks import step_cost

RUN = ["--running", "1", "4", "--blocks", "50", "200", "--steps", "20"]


def test_every_cell_that_fits_the_pool_is_measured(tmp_path):
    costs = step_cost.main([*RUN, "--results", str(tmp_path)])["costs"]
    measured = [(cost["num_requests"], cost["num_blocks"]) for cost in costs]
    assert measured == [(1, 50), (1, 200), (4, 200)]
    assert (tmp_path / "step_cost.json").exists()


def test_all_requests_decode_in_a_pool_without_a_free_block():
    scheduler = step_cost.make_scheduler(num_requests=4, num_blocks=200, num_steps=20)
    for _ in range(20):
        plan = scheduler.schedule()
        assert [entry.num_new for entry in plan.scheduled] == [1] * 4
        new_blocks = [block for entry in plan.scheduled for block in entry.new_blocks]
        assert plan.evicted == new_blocks
        scheduler.update(plan, [[1]] * 4)
        scheduler.check()


def test_what_is_measured_needs_no_torch():
    code = "import sys, benchmarks.step_cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
