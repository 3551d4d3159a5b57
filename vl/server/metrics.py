"""What Prometheus is told."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vl.engine import AsyncEngine, Delta, Engine, Request

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counts what requests bring and get; the engine's own numbers are looked up when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_OfTheEngine(engine))
        ProcessCollector(registry=registry)  # memory, files and processor time of this process, where there is /proc
        self._http = Counter("vl_http_requests", "HTTP answers.", ["path", "status"], registry=registry)
        self._prompt = Counter("vl_prompt_tokens", "Tokens of prompts, those of images too.", registry=registry)
        self._images = Counter("vl_image_tokens", "Tokens of prompts that are images'.", registry=registry)
        self._written = Counter("vl_generated_tokens", "Tokens written.", registry=registry)
        self._ended = Counter("vl_answers", "Answers by how they ended.", ["reason"], registry=registry)
        self._first = Histogram(
            "vl_time_to_first_token_seconds", "From its arrival to a request's first token.", buckets=_FIRST,
            registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            "vl_inter_token_seconds", "Between the tokens of an answer.", buckets=_BETWEEN, registry=registry
        )
        self._whole = Histogram(
            "vl_answer_seconds", "From its arrival to the end of an answer.", buckets=_FIRST, registry=registry
        )

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)

    def answered(self, path: str, status: int) -> None:
        """An HTTP request has got its status. `path`: one of the server's own."""
        self._http.labels(path, str(status)).inc()

    async def follow(self, engine: AsyncEngine, request: Request, arrival: float) -> AsyncGenerator[Delta, None]:
        """`engine.follow`, counted. `arrival`: of the request, by `time.monotonic`."""
        self._prompt.inc(request.usage.prompt_tokens)
        self._images.inc(request.usage.image_tokens)
        before, reason = 0.0, "cancelled"
        try:
            async with aclosing(engine.follow(request)) as deltas:
                async for delta in deltas:
                    now, count = time.monotonic(), len(delta.token_ids)
                    if count and before:
                        for _ in range(count):
                            self._between.observe((now - before) / count)
                    elif count:
                        self._first.observe(now - arrival)
                    if count:
                        before = now
                        self._written.inc(count)
                    if delta.done:
                        reason = str(request.finish_reason)
                    yield delta
        except Exception:
            reason = "error"
            raise
        finally:
            self._ended.labels(reason).inc()
            self._whole.observe(time.monotonic() - arrival)


class _OfTheEngine(Collector):
    """Numbers that the engine has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """None, or the registry would ask the engine when it is made."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine, counts = self._engine, self._engine.counts
        yield GaugeMetricFamily("vl_requests_running", "Answers in the batch.", len(engine.scheduler.running))
        yield GaugeMetricFamily("vl_requests_waiting", "Answers in the queue.", len(engine.scheduler.waiting))
        runner = engine.runner  # another thread may replace it
        if runner is not None:
            cache = runner.cache
            yield _shares("vl_cache_slots", "Slots of the cache.", cache.slots, free=cache.free_slots)
            free, kept = cache.free_pages, cache.idle_pages
            yield _shares("vl_cache_pages", "Pages of the KV cache.", cache.pages, kept=kept, free=free)
        prefixes = engine.prefixes
        if prefixes is not None:
            free, kept = prefixes.free_places, len(prefixes)
            yield _shares("vl_cache_snapshots", "Kept states of prompts.", prefixes.places, kept=kept, free=free)
        yield CounterMetricFamily("vl_prefix_hits", "Prompts whose beginning was kept.", counts.hits)
        misses = CounterMetricFamily("vl_prefix_misses", "Prompts read from their first token on.", labels=["cause"])
        for cause, count in sorted(counts.misses.items()):
            misses.add_metric([cause], count)
        yield misses
        yield CounterMetricFamily("vl_prefix_tokens", "Tokens of all prompts that were begun.", counts.tokens)
        yield CounterMetricFamily("vl_prefix_cached_tokens", "Of these, those that were not read.", counts.cached)
        images = CounterMetricFamily("vl_images", "Images by whether their features were kept.", labels=["found"])
        for found, count in zip(("hit", "miss"), engine.image_counts, strict=True):
            images.add_metric([found], count)
        yield images


def _shares(name: str, what: str, all_of_them: int, **states: int) -> Metric:
    """How many are in which state; the rest of them are used."""
    family = GaugeMetricFamily(name, what, labels=["state"])
    family.add_metric(["used"], all_of_them - sum(states.values()))
    for state, count in states.items():
        family.add_metric([state], count)
    return family
