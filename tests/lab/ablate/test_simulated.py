from minimal_vllm.config import EngineConfig
from minimal_vllm_lab.ablate.claims import CLAIMS, run_claim, settings
from minimal_vllm_lab.ablate.ideas import IDEAS
from minimal_vllm_lab.ablate.simulated import run_simulated, settle_simulated
from minimal_vllm_lab.ablate.study import config_without
from minimal_vllm_lab.sim.config import SimulationConfig, SyntheticConfig, TrafficConfig
from minimal_vllm_lab.sim.simulation import make_design, simulate


def settled(**engine):
    config = SimulationConfig(
        EngineConfig(model="qwen3-0.6b", max_model_len=2048, **engine),
        traffic=TrafficConfig(request_rate=20),
        synthetic=SyntheticConfig(num_prompts=60, input_len=100, output_len=60),
    )
    return SimulationConfig(
        settle_simulated(config), traffic=config.traffic, synthetic=config.synthetic
    )


def test_an_ablation_s_engine_is_the_simulator_s():
    config = settled()
    result, report = run_simulated(config), simulate(make_design(config), config).to_json()
    assert {name: result[name] for name in report} == report


def test_the_same_pool_serves_with_and_without_an_idea():
    config = settled()
    assert config.engine.num_gpu_blocks_override == make_design(config).num_blocks
    changed = config_without(config, IDEAS["paging"])
    assert make_design(changed).num_blocks == make_design(config).num_blocks


def test_every_request_is_served_without_any_idea():
    config = settled(num_gpu_blocks_override=160)
    for idea in IDEAS.values():
        if not idea.on_gpu:
            result = run_simulated(config_without(config, idea))
            assert (result["completed"], result["refused"]) == (60, 0)


def claim_results(name):
    config = settings(CLAIMS[name], SimulationConfig(EngineConfig(model="qwen3-8b")))
    config = SimulationConfig(settle_simulated(config), synthetic=config.synthetic)
    return {each["system"]: each for each in run_claim(CLAIMS[name], config, run_simulated)}


def test_memory_is_wasted_as_in_figure_2():
    """The shares agree with Kwon et al. to within 10 points."""
    results = claim_results("memory")
    published = {
        "all on": (0.963, 0.0, 0.0, 0.0),
        "Orca (Max)": (0.204, 0.133, 0.573, 0.089),
        "Orca (Oracle)": (0.382, 0.252, 0.0, 0.366),
    }
    tokens = {name: result["kv_shares"]["tokens"] for name, result in results.items()}
    assert abs(tokens["all on"] - published["all on"][0]) < 0.1
    assert abs(tokens["Orca (Oracle)"] - published["Orca (Oracle)"][0]) < 0.1
    shares = tuple(results["Orca (Max)"]["kv_shares"].values())
    pairs = zip(shares, published["Orca (Max)"], strict=True)
    assert all(abs(here - there) < 0.1 for here, there in pairs)
    assert results["all on"]["kv_waste"] < 0.04


def test_static_batches_and_prompts_computed_again_cost_throughput():
    for name, system in (("batching", "static batching"), ("sharing", "no prefix caching")):
        results = claim_results(name)
        full = results["all on"]["output_throughput"]
        assert full > 1.5 * results[system]["output_throughput"]
        assert "times as much" in results[system]["measured"]
