"""What the service does at most. Imports nothing that the service needs."""

from __future__ import annotations

from dataclasses import dataclass

from langdepth.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service does at most.

    Args:
        queue: Requests that may be inside at once, waiting or in work; further ones are answered with 429.
        max_mb: Megabytes of a request; larger ones are answered with 413.
        timeout: Seconds that a request may take to arrive, and its answer to be made; then it is answered with 408 or
            504.
        wait: Milliseconds that an image waits for others that are being decoded, to share a batch with them.

    Raises:
        UsageError: For values that make no sense.
    """

    queue: int = 64
    max_mb: float = 32.0
    timeout: float = 60.0
    wait: float = 5.0

    def __post_init__(self) -> None:
        for name, least, most in (("queue", 1, 10_000), ("max_mb", 0.001, 1000), ("timeout", 0.1, 3600)):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"--{name.replace('_', '-')} must lie between {least:g} and {most:g}")
        if not 0 <= self.wait <= 1000:
            raise UsageError("--wait must lie between 0 and 1000 milliseconds")
