"""Prometheus metrics of language models: tokens, how long the first one took, and how many came in a second."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_MODEL = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class GenerationMetrics:
    """What is counted of generated texts.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.prompt_tokens = Counter(
            "cpt_serve_prompt_tokens", "Tokens of prompts and scored texts", _MODEL, registry=registry
        )
        self.generated_tokens = Counter("cpt_serve_generated_tokens", "Tokens generated", _MODEL, registry=registry)
        self.first_token_seconds = Histogram(
            "cpt_serve_time_to_first_token_seconds",
            "From a request's arrival to its first generated token",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self.token_seconds = Histogram(
            "cpt_serve_time_per_output_token_seconds",
            "From a generated token to the next",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens_per_second = Histogram(
            "cpt_serve_tokens_per_second",
            "Tokens a second of a finished text, after its first token",
            _MODEL,
            buckets=_RATES,
            registry=registry,
        )
        self.texts = Gauge(
            "cpt_serve_texts_in_flight",
            "Texts that are generated or scored",
            _MODEL,
            registry=registry,
        )

    def observe(self, model: str, version: str) -> "ModelGenerationMetrics":
        """Return what counts the texts of a model version."""
        return ModelGenerationMetrics(self, model, version)


class ModelGenerationMetrics:
    """The metrics of one model version, a `GenerationObserver`.

    Args:
        metrics: The server's.
        model: Name of the model.
        version: Its version.
    """

    def __init__(self, metrics: GenerationMetrics, model: str, version: str) -> None:
        self._prompt_tokens = metrics.prompt_tokens.labels(model, version)
        self._generated_tokens = metrics.generated_tokens.labels(model, version)
        self._first_token_seconds = metrics.first_token_seconds.labels(model, version)
        self._token_seconds = metrics.token_seconds.labels(model, version)
        self._tokens_per_second = metrics.tokens_per_second.labels(model, version)
        self._texts = metrics.texts.labels(model, version)

    def texts_changed(self, count: int) -> None:
        """Show how many texts are under way."""
        self._texts.set(count)

    def text_read(self, tokens: int) -> None:
        """Count tokens that clients brought."""
        self._prompt_tokens.inc(tokens)

    def first_token(self, seconds: float) -> None:
        """Count a text's first token and how long it took."""
        self._generated_tokens.inc()
        self._first_token_seconds.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Count a further token and how long it took."""
        self._generated_tokens.inc()
        self._token_seconds.observe(seconds)

    def text_finished(self, tokens: int, seconds: float) -> None:
        """Count how fast a text came; one token alone has no rate."""
        if tokens > 1 and seconds > 0:
            self._tokens_per_second.observe((tokens - 1) / seconds)
