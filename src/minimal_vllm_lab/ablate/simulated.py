"""Measurement with a simulated engine, on a GPU that need not exist here."""

from collections.abc import Sequence
from dataclasses import replace

from minimal_vllm.config import EngineConfig
from minimal_vllm.routing import ROUTERS
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.step_record import StepRecord
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.ablate.memory import MemoryWatch
from minimal_vllm_lab.ablate.workload import fitting_jobs
from minimal_vllm_lab.bench.statistics import Fields
from minimal_vllm_lab.sim.cluster import Cluster
from minimal_vllm_lab.sim.config import SimulationConfig
from minimal_vllm_lab.sim.metrics import Metrics
from minimal_vllm_lab.sim.simulation import make_design


def settle_simulated(config: SimulationConfig) -> EngineConfig:
    """Return the configuration with all choices made that the engine would make on the given GPU.

    Raises:
        ValueError: See ``make_design``.
    """
    design = make_design(config)
    return replace(
        config.engine,
        num_gpu_blocks_override=design.num_blocks,
        max_model_len=design.scheduler_config.max_model_len,
        max_num_batched_tokens=design.scheduler_config.max_num_batched_tokens,
    )


def run_simulated(config: SimulationConfig, writers: Sequence[TraceWriter] = ()) -> Fields:
    """Simulate one engine; return the numbers that a real engine would give.

    Args:
        config: engine and workload.
        writers: write traces of the simulation.

    Raises:
        ValueError: See ``make_design``.
    """
    design = make_design(config)
    watch = MemoryWatch()

    def take_sample(record: StepRecord) -> None:
        seconds = record.schedule_seconds + record.run_seconds + record.update_seconds
        watch.sample(replica.scheduler, record.started + seconds)

    for writer in writers:
        writer.begin(engine_facts(config.engine, design), spell=None, started=0.0)
    replica = design.make_replica([take_sample, *writers])
    limits, metrics = design.scheduler_config, Metrics(None)
    jobs = fitting_jobs(config, design.model.vocab_size, limits.max_model_len)
    Cluster([replica], ROUTERS["round-robin"]([0], limits.block_size), metrics).run(jobs)
    return {**metrics.report([replica]).to_json(), **watch.result()}
