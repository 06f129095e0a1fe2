"""Numbers of a replica for Prometheus. No torch."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts since the replica began; a registry of its own, because Ray fills the common one."""

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.images = Counter("gear_images", "Images sent", registry=self._registry)
        self._requests = Counter(
            "gear_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "gear_request_seconds",
            "Seconds from a request's arrival to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "gear_batch_images", "Images of a batch", buckets=_SIZES, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "gear_batch_seconds", "Seconds of a batch", buckets=_SECONDS, registry=self._registry
        )
        self._abandoned = Counter(
            "gear_requests_abandoned", "Requests whose client left", registry=self._registry
        )
        waiting = Gauge("gear_images_waiting", "Images in the queue", registry=self._registry)
        waiting.set_function(num_waiting)

    def count_batch(self, size: int, seconds: float) -> None:
        """A batch was finished."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_abandoned(self) -> None:
        """A client left before its answer."""
        self._abandoned.inc()

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
