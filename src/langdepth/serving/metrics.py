"""What the service counts, as text for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Metrics:
    """Answers by status, and how long they took."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()
        self._seconds = 0.0
        self._within = dict.fromkeys(BUCKETS, 0)

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.answers[status] += 1
        self._seconds += seconds
        for bucket in BUCKETS:
            self._within[bucket] += seconds <= bucket

    def text(self, gauges: Mapping[str, int], counters: Mapping[str, int]) -> str:
        """In Prometheus' text format, with further values by name."""
        return "\n".join(self._lines(gauges, counters)) + "\n"

    def _lines(self, gauges: Mapping[str, int], counters: Mapping[str, int]) -> Iterator[str]:
        yield "# TYPE langdepth_requests_total counter"
        for status, count in sorted(self.answers.items()):
            yield f'langdepth_requests_total{{status="{status}"}} {count}'
        yield "# TYPE langdepth_request_seconds histogram"
        count = sum(self.answers.values())
        for bucket, within in (*self._within.items(), ("+Inf", count)):
            yield f'langdepth_request_seconds_bucket{{le="{bucket}"}} {within}'
        yield f"langdepth_request_seconds_sum {self._seconds:.6f}"
        yield f"langdepth_request_seconds_count {count}"
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, value in values.items():
                yield f"# TYPE langdepth_{name} {kind}"
                yield f"langdepth_{name} {value}"
