from benchmarks import cluster_accuracy
from minimal_vllm.config import SchedulerConfig
from minimal_vllm_lab.sim.cost_model import LinearCostModel

COSTS = LinearCostModel(1e-3, 1e-5, 1e-5, 1e-5, 1e-7, 1e-9)


def test_prefix_aware_routing_is_predicted_to_have_the_most_hits():
    requests = cluster_accuracy.make_requests(60, seed=0)
    arrivals = [float(index) for index in range(60)]
    config = SchedulerConfig(max_model_len=2048)
    hits = {}
    for routing in ("round-robin", "prefix-aware"):
        times, hits[routing] = cluster_accuracy.predict(requests, arrivals, routing, config, COSTS)
        assert len(times) == 60
        assert all(seconds > 0 for seconds in times)
    assert hits["prefix-aware"] > hits["round-robin"] > 0
