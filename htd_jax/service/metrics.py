"""Metrics of the service, in the form that Prometheus reads."""

import time
from collections.abc import Iterator

from prometheus_client import (
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from htd_jax.service.current import Current

# Upper bounds of a request's seconds.
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counts requests and their time; tells what model answers.

    Every application has its own, so that several of one process do not count together.
    """

    def __init__(self, current: Current):
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_ModelCollector(current))
        self._requests = Counter("htd_jax_requests", "Answered requests.", ("path", "status"), registry=self._registry)
        self._seconds = Histogram(
            "htd_jax_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("path",),
            buckets=BUCKETS,
            registry=self._registry,
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Counts a request.

        Args:
          path: of its route, of which there are few; not what was asked for.
        """
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Returns all metrics as text."""
        return generate_latest(self._registry)


class _ModelCollector(Collector):
    """Tells about the model when it is asked, so that nothing has to be told when another takes its place."""

    def __init__(self, current: Current):
        self._current = current

    def collect(self) -> Iterator[Metric]:
        loaded, model = self._current.loaded, self._current.loaded.model
        told = GaugeMetricFamily("htd_jax_model", "The model that answers.", labels=("version", "precision", "dim"))
        told.add_metric([str(model.version), model.precision, str(model.dim)], 1)
        yield told
        yield GaugeMetricFamily("htd_jax_model_users", "Users that the model knows.", len(model.user_ids))
        yield GaugeMetricFamily("htd_jax_model_items", "Items that the model knows.", len(model.item_ids))
        yield GaugeMetricFamily(
            "htd_jax_model_opened_seconds", "When it was opened, since 1970.", loaded.at.timestamp()
        )
        reloads = CounterMetricFamily("htd_jax_reloads", "Reloads, by how they ended.", labels=("outcome",))
        for outcome, number in self._current.outcomes.items():
            reloads.add_metric([outcome], number)
        yield reloads


class Counting:
    """Middleware that counts requests, also those that fail."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.count(path, status, time.perf_counter() - begin)
        return None
