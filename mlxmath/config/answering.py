"""Settings of evaluation and distillation, which have models answer problems."""

import json
import math
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from mlxmath.config.section import DEMO, Folder, Section, parts


def _draws_differ(value: float, info: ValidationInfo) -> float:
    if value == 0 and info.data.get("samples", 1) > 1:
        raise ValueError("several --samples would all be the same at 0; give for example 0.7")
    return value


Temperature = Annotated[float, Field(ge=0), AfterValidator(_draws_differ)]


class EvaluationConfig(Section):
    """What models are asked, how they answer, how answers are put together."""

    benchmark: tuple[str, ...] = Field(
        (DEMO,),
        description="Benchmarks, separated by commas: demo, gsm8k, math500, math, gsm-hard, svamp, mathqa, aime24, "
        "minerva, a local file, or NAME=FILE for a benchmark's rows in a local file.",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ask only N problems of each benchmark: always the same ones, spread over the whole."
    )
    template_for: tuple[str, ...] = Field(
        (),
        description="Template of one model, MODEL=TEMPLATE, several separated by commas: MODEL as the report names it "
        "(base, tuned, ...), TEMPLATE a name, a .toml file, 'chat', or 'adapter' for the one of the tuned model "
        "(unset: an adapter's training one; a base's chat template, else the adapter's).",
    )
    shots: Annotated[int, Field(ge=0)] = Field(0, description="Worked examples before each problem.")
    samples: Annotated[int, Field(ge=1)] = Field(1, description="Answers to each problem, for pass@k and maj@k.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer, in tokens (unset: the benchmark's)."
    )
    temperature: Temperature = Field(
        0.0,
        validate_default=True,
        description="0 always takes the most likely token; several samples need more than 0.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep the most likely tokens of this total probability."
    )
    retrieve: str | None = Field(
        None, description="Add the best-matching formulas of this .jsonl file to each problem; 'bundled' is ours."
    )
    retrieve_count: Annotated[int, Field(ge=1)] = Field(3, description="Formulas added to a problem, at most.")
    vote: Literal["equal", "weighted"] | None = Field(
        None, description="Let the tuned models vote together, each answer counting the same or by --weights."
    )
    weights: tuple[float, ...] = Field(
        (), description="A voting model's weight each (unset: its accuracy on the other problems)."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answers generated together (unset: as many as pay off and fit the memory)."
    )
    results_path: Folder = Field("evaluation_results", description="Folder for the runs' folders.")
    run_name: str | None = Field(None, description="Name of this run's folder (unset: made from its settings).")

    @field_validator("benchmark", "template_for", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return parts(value, ",")

    @field_validator("weights", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if not isinstance(value, str):
            return parts(value, ",")
        try:
            return tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            raise ValueError("give numbers separated by commas") from None

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if value and info.data.get("vote") != "weighted":
            raise ValueError("needs --vote weighted")
        if any(not 0 <= weight < math.inf for weight in value) or (value and not any(value)):
            raise ValueError("give numbers from 0, not all of them 0")
        return value

    @field_validator("template_for")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        labels = [label.strip() for label, _, template in (part.partition("=") for part in value) if template.strip()]
        if len(labels) < len(value) or len(set(labels)) < len(labels) or "" in labels:
            raise ValueError("expected MODEL=TEMPLATE, each model once, for example base=chat")
        return value

    @field_validator("run_name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip(". ") or "/" in value or "\\" in value):
            raise ValueError("give the name of a folder, without a path")
        return value


class DistillationConfig(Section):
    """Who writes solutions, how it is asked, and which of its solutions are kept."""

    teacher: str | None = Field(None, description="Local teacher: MLX model folder, or MODEL:ADAPTER.")
    teacher_url: str | None = Field(
        None, description="Teacher behind an OpenAI-compatible endpoint, for example https://api.deepseek.com/v1."
    )
    teacher_model: str | None = Field(None, description="The endpoint's name of the teacher.")
    teacher_key_env: str | None = Field(
        None, description="Environment variable that holds the endpoint's key (unset: no key is sent)."
    )
    teacher_extra: str | None = Field(
        None, description="JSON object merged into each request to the endpoint; null takes a field out."
    )
    teacher_template: str | None = Field(
        None, description="Prompt template of a local teacher (unset: its adapter's, else its chat template)."
    )
    instruction: str = Field(
        "Solve the problem step by step. Write out every calculation, and put the final answer within \\boxed{}.",
        description="What follows the problem in the question to the teacher ('': nothing).",
    )
    samples: Annotated[int, Field(ge=1)] = Field(4, description="Solutions asked for to each problem.")
    temperature: Temperature = Field(
        0.7, description="Temperature that solutions are drawn at; several samples need more than 0."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep the most likely tokens of this total probability."
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(4096, description="Longest solution, in tokens.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="Seed of the samples (unset: 0 for a local teacher, none is sent to an endpoint)."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Solutions written at once (unset: 8 by an endpoint, as many as pay off by a local teacher)."
    )
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most requests a minute to the endpoint (unset: no limit)."
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(600.0, description="Seconds to wait for one answer.")
    retries: Annotated[int, Field(ge=0)] = Field(6, description="How often a failed request is made again.")
    backoff_s: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Seconds before the first repetition; doubled for each further one, up to 60."
    )
    price_in: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of a million prompt tokens.")
    price_out: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of a million tokens written.")
    keep: Literal["best", "all"] = Field(
        "best", description="Accepted solutions of a problem that are kept: the most faithful, shortest one, or all."
    )
    thinking: Literal["keep", "drop"] = Field(
        "keep", description="What becomes of a solution's <think> part in what is kept."
    )
    min_validity: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Least share of true equations, where any can be decided."
    )
    min_provenance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least share of operands that come from the problem or an earlier result."
    )
    min_liveness: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least share of equations that the answer was computed from."
    )
    require_support: bool = Field(
        False, description="Keep only solutions with an equation whose result is the final answer."
    )
    allow_doubt: bool = Field(False, description="Keep solutions that go round in circles.")
    min_characters: Annotated[int, Field(ge=0)] = Field(20, description="Shortest solution kept, in characters.")
    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest solution kept, in characters (unset: any)."
    )
    output_path: Folder = Field("distilled", description="Folder for responses, solutions and their card.")

    @field_validator("teacher_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or len(value.split()) != 1:
            raise ValueError("give a URL that begins with http:// or https://")
        if parts.query or parts.fragment:
            raise ValueError("give the URL without what follows ? or #")
        if parts.port == 0:
            raise ValueError("port 0 is no address")
        if parts.username or parts.password:
            raise ValueError("a key does not belong into the URL; name its environment variable (--teacher-key-env)")
        return value.rstrip("/")

    @field_validator("teacher_extra")
    @classmethod
    def _object(cls, value: str | None) -> str | None:
        try:
            wrong = value is not None and not isinstance(json.loads(value), dict)
        except ValueError:
            wrong = True
        if wrong:
            raise ValueError('give a JSON object, for example \'{"reasoning_effort": "high"}\'')
        return value

    @field_validator("max_characters")
    @classmethod
    def _some_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("min_characters", 0):
            raise ValueError("is less than --min-characters")
        return value
