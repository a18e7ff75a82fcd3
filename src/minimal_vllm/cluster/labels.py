"""One page of metrics from those of several processes."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def join_metrics(pages: Mapping[str, str]) -> bytes:
    """Return all samples of several pages, each with the label ``replica``.

    Args:
        pages: Prometheus's text format, by the name of its replica.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(pages))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                kept = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    kept.samples.append(sample._replace(labels=labels))
        return iter(families.values())
