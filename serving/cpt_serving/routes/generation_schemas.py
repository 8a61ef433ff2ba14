"""Schemas of requests for text and of their answers, for validation and for `/docs`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cpt_serving.inference.generation import FinishReason, ScoredToken
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

MOST_STOPS = 16
MOST_STOP_CHARACTERS = 256
"""Maximum length of a string in `stop`: after each token, as much text is compared with each of them."""
MOST_LOGPROBS = 20
LARGEST_SEED = 2**63 - 1


class GenerationParameters(BaseModel):
    """How text is generated."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_tokens: int = Field(default=64, ge=1, description="maximum tokens to generate")
    temperature: float = Field(default=1.0, ge=0, le=100, description="0: always the most probable token")
    top_k: int = Field(default=0, ge=0, description="draw from this many most probable tokens; 0: from all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the fewest tokens with this total probability")
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED, description="the same seed gives the same text")
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description="strings that end the text, which stops before the first of them"
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=MOST_LOGPROBS, description="probability of each token and of this many alternatives"
    )
    stream: bool = Field(default=False, description="send each token as soon as it is generated, as server-sent events")

    def stops(self) -> list[str]:
        """Return the strings that end the text.

        Raises:
            RequestError: 400 if one is empty or too long, or there are too many.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or not all(0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
            raise bad_request(
                f"Expected at most {MOST_STOPS} strings in stop, each of 1 to {MOST_STOP_CHARACTERS} characters, "
                f"but got {shown(stops)}"
            )
        return stops


class GenerateBody(GenerationParameters):
    """A request to `/generate`."""

    prompt: str = Field(description="text to continue; an empty one means the beginning of a line")


class ScoreBody(BaseModel):
    """A request to `/score`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS, description="number of most probable tokens at each place")


class TritonGenerateBody(BaseModel):
    """A request to Triton's generate extension; parameters may also be next to `text_input`."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    text_input: str
    parameters: dict[str, Any] | None = Field(default=None, description="as in `/generate`, and timeout (µs)")


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    generated_tokens: int


class GenerationTimings(BaseModel):
    """Times of a generation; the rate is that of the tokens after the first, null if there are none."""

    first_token_ms: float
    total_ms: float
    tokens_per_s: float | None


class GenerateAnswer(BaseModel):
    """An answer of `/generate`; as a stream, events with `text` and a last event with the other fields."""

    model: str
    version: str
    text: str
    finish_reason: FinishReason
    seed: int
    usage: Usage
    timings: GenerationTimings
    logprobs: list[ScoredToken] | None = None


class ScoreAnswer(BaseModel):
    """An answer of `/score`; the first token has no probability, because there is no token before it."""

    model: str
    version: str
    tokens: list[ScoredToken]
    scored_tokens: int
    logprob: float = Field(description="of the whole text after its first token")
    perplexity: float | None = Field(description="null if there is only one token, or beyond 1e308")


class TritonGenerateAnswer(BaseModel):
    """An answer of Triton's generate extension."""

    id: str | None = None
    model_name: str
    model_version: str
    text_output: str
