"""Settings that one method alone has: reinforcement learning, preferences, distillation, augmentation, evaluation,
export.
"""

import math
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from mlxmath.config.section import DEMO, Folder, Names, Section, parts, require
from mlxmath.parsing import parse_json


def _numbers(value: object) -> object:
    """The numbers of a text that lists several; a list as it is."""
    if not isinstance(value, str):
        return parts(value)
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise ValueError("give numbers separated by commas") from None


def _is_object(text: str | None, _: object) -> bool:
    try:
        return text is None or isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _are_pairs(pairs: tuple[str, ...], _: object) -> bool:
    """Whether each is MODEL=TEMPLATE, and no model occurs twice."""
    models = [model.strip() for model, _, template in (pair.partition("=") for pair in pairs) if template.strip()]
    return "" not in models and len(set(models)) == len(pairs)


Tool = Literal["calculator", "python"]
"""What an answer may call."""

Temperature = Annotated[
    float,
    Field(ge=0),
    require(
        lambda value, others: value or others.get("samples", 1) == 1,
        "several --samples would all be the same at 0; give for example 0.7",
    ),
]
_is_http = require(
    lambda url, _: urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and len(url.split()) == 1,
    "give a URL that begins with http:// or https://",
)
_no_query = require(
    lambda url, _: not urlsplit(url).query and not urlsplit(url).fragment, "give the URL without what follows ? or #"
)
_some_port = require(lambda url, _: urlsplit(url).port != 0, "port 0 is no address")
_no_key = require(
    lambda url, _: not urlsplit(url).username and not urlsplit(url).password,
    "a key does not belong into the URL; name its environment variable (--teacher-key-env)",
)
_object = require(_is_object, 'give a JSON object, for example \'{"reasoning_effort": "high"}\'')
_some_length = require(
    lambda value, others: value is None or value >= others.get("min_characters", 0), "is less than --min-characters"
)
_pairs = require(_are_pairs, "expected MODEL=TEMPLATE, each model once, for example base=chat")
_synthesized = require(
    lambda value, others: value is None or others.get("vote") == "synthesize", "needs --vote synthesize"
)
_one_sample = require(
    lambda value, others: not value or (others.get("samples", 1) == 1 and others.get("vote") is None),
    "a problem counts as right or wrong: it takes neither --samples nor --vote",
)
_weighted = require(lambda value, others: not value or others.get("vote") == "weighted", "needs --vote weighted")
_positive = require(
    lambda value, _: not value or (all(0 <= weight < math.inf for weight in value) and any(value)),
    "give numbers from 0, not all of them 0",
)
_no_dequantize = require(
    lambda value, others: not value or not others.get("dequantize"), "give --dequantize or --requantize, not both"
)
_no_gguf_type = require(
    lambda value, others: not value or others.get("gguf_type") == "f16",
    "takes no --gguf-type: an adapter is not quantized",
)
_with_check = require(lambda value, others: not value or others.get("check", True), "needs --check")
_one_folder = require(
    lambda value, _: value is None or (value.strip(". ") and "/" not in value and "\\" not in value),
    "give the name of a folder, without a path",
)


class GrpoConfig(Section):
    """Reinforcement learning by group-relative policy optimization, named as TRL names it."""

    num_generations: Annotated[int, Field(ge=2)] = Field(8, description="Completions of a prompt, compared as a group.")
    max_completion_length: Annotated[int, Field(ge=1)] = Field(512, description="Longest completion, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Temperature that completions are drawn at.")
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the divergence from the model at the start (0: none)."
    )
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="How far a probability ratio may fall.")
    epsilon_high: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="How far a probability ratio may rise (unset: as far as it may fall); cispo: the ratio's bound "
        "itself (unset: 5).",
    )
    sapo_temperature_pos: Annotated[float, Field(gt=0)] = Field(
        1.0, description="sapo: how fast the gate closes on tokens of a positive advantage."
    )
    sapo_temperature_neg: Annotated[float, Field(gt=0)] = Field(1.05, description="sapo: the same of the other tokens.")
    top_entropy_quantile: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of a step's tokens, those of the highest entropy, that the policy's loss counts."
    )
    num_iterations: Annotated[int, Field(ge=1)] = Field(1, description="Optimizer passes over each set of completions.")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"] = Field(
        "dapo",
        description="The loss: how those of tokens are averaged; cispo clips weights only, sapo has a soft gate.",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Standard deviation that advantages are divided by: the group's, the batch's, or none."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Whether probability ratios are of tokens or of whole completions."
    )
    mask_truncated_completions: bool = Field(
        False, description="Leave completions that reached the longest length out of the loss."
    )
    dynamic_sampling: bool = Field(
        False, description="Draw other problems in place of groups whose rewards are all the same."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Completions drawn at a time (unset: as many as pay off, in the memory that learning takes)."
    )
    reward_weights: dict[str, float] = Field(
        {"correctness": 1.0}, description="Rewards that count, each with its weight."
    )


class DistillationConfig(Section):
    """Who writes solutions, how it is asked, and which of its solutions are kept."""

    teacher: str | None = Field(None, description="Local teacher: MLX model folder, or MODEL:ADAPTER.")
    teacher_url: (
        Annotated[str, _is_http, _no_query, _some_port, _no_key, AfterValidator(lambda url: url.rstrip("/"))] | None
    ) = Field(
        None, description="Teacher behind an OpenAI-compatible endpoint, for example https://api.deepseek.com/v1."
    )
    teacher_model: str | None = Field(None, description="The endpoint's name of the teacher.")
    teacher_key_env: str | None = Field(
        None, description="Environment variable that holds the endpoint's key (unset: no key is sent)."
    )
    teacher_extra: Annotated[str | None, _object] = Field(
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
    max_characters: Annotated[Annotated[int, Field(ge=1)] | None, _some_length] = Field(
        None, description="Longest solution kept, in characters (unset: any)."
    )
    output_path: Folder = Field("distilled", description="Folder for responses, solutions and their card.")


class AugmentationConfig(Section):
    """More problems and solutions out of those that there are."""

    augment: Annotated[
        tuple[Literal["numbers", "names", "order", "paths", "rephrase"], ...], BeforeValidator(parts)
    ] = Field(
        (),
        description="Write a dataset of the problems with more of them, separated by commas: numbers, names and order "
        "vary them, their answers computed again; paths and rephrase have a teacher (--teacher, --teacher-url) write "
        "more solutions, of which the right ones are kept.",
    )
    variations: Annotated[int, Field(ge=1)] = Field(1, description="Variations of a problem, of each kind.")
    hold_out: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Problems held out, of which nothing is made: this fraction if below 1, else their number."
    )
    augment_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of the variations and of the problems held out (as --seed of train's --validation-split)."
    )
    augment_path: Folder = Field("augmented", description="Folder for what --augment writes.")


class EvaluationConfig(Section):
    """What models are asked, how they answer, how answers are put together."""

    benchmark: Names = Field(
        (DEMO,),
        description="Benchmarks, separated by commas: demo, gsm8k, math500, math, gsm-hard, svamp, mathqa, mmlu-math, "
        "aime, aime22, aime23, aime24, aime25, amc, amc22, amc23, olympiadbench, minerva, a local file, or NAME=FILE "
        "for a benchmark's rows in a local file.",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ask only N problems of each benchmark: always the same ones, spread over the whole."
    )
    template_for: Annotated[Names, _pairs] = Field(
        (),
        description="Template of one model, MODEL=TEMPLATE, several separated by commas: MODEL as the report names it "
        "(base, tuned, ...), TEMPLATE a name, a .toml file, 'chat', or 'adapter' for the one of the tuned model "
        "(unset: an adapter's training one; a base's chat template, else the adapter's).",
    )
    perturb: Literal["numbers", "names", "order"] | None = Field(
        None,
        description="Ask each problem that can be varied safely a second time, with other numbers, names, or in "
        "another order, and compare: whether it is memorised or understood.",
    )
    shots: Annotated[int, Field(ge=0)] = Field(
        0, description="Worked examples before each problem (with --few-shot, 0 means all of its examples)."
    )
    few_shot: str | None = Field(
        None,
        description="Which worked examples: 'standard' for the eight of Wei et al. 2022, which lm-eval brings along, "
        "or a file of problems and solutions (unset: ours).",
    )
    samples: Annotated[int, Field(ge=1)] = Field(1, description="Answers to each problem, for pass@k and maj@k.")
    temperature: Temperature = Field(
        0.0,
        validate_default=True,
        description="0 always takes the most likely token; several samples need more than 0.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep the most likely tokens of this total probability."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer, in tokens (unset: the benchmark's)."
    )
    retrieve: str | None = Field(
        None, description="Add the best-matching formulas of this .jsonl file to each problem; 'bundled' is ours."
    )
    retrieve_count: Annotated[int, Field(ge=1)] = Field(3, description="Formulas added to a problem, at most.")
    tools: Literal["calculator", "python", "none"] | None = Field(
        None,
        description="What answers may call: a calculator (<<12*7=), or programs in Python with SymPy; with --compare "
        "each model is asked with and without (unset: what its adapter was trained with).",
    )
    vote: Literal["equal", "weighted", "synthesize"] | None = Field(
        None,
        description="Let the tuned models vote together, each answer counting the same or by --weights; or let a model "
        "read their answers and choose or combine (synthesize).",
    )
    vote_model: Annotated[str | None, _synthesized] = Field(
        None, description="Model that reads the answers, as MODEL or MODEL:ADAPTER (unset: the first of the members)."
    )
    weights: Annotated[tuple[float, ...], BeforeValidator(_numbers), _weighted, _positive] = Field(
        (), description="A voting model's weight each (unset: its accuracy on the other problems)."
    )
    until_decided: Annotated[bool, _one_sample] = Field(
        False,
        description="Ask in rounds, and stop as soon as it is sure which model is better, or that they differ by less "
        "than --smallest-difference.",
    )
    smallest_difference: Annotated[float, Field(gt=0, le=99)] = Field(
        5.0, description="Differences of accuracy below so many percentage points need not be found (--until-decided)."
    )
    first_round: Annotated[int, Field(ge=1)] = Field(
        50, description="Problems in the first round (--until-decided); each round brings half as many more."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answers generated together (unset: as many as pay off and fit the memory)."
    )
    results_path: Folder = Field("evaluation_results", description="Folder for the runs' folders.")
    run_name: Annotated[str | None, _one_folder] = Field(
        None, description="Name of this run's folder (unset: made from its settings)."
    )


class ExportConfig(Section):
    """What a tuned model is written as, for other programs."""

    to: Literal["peft", "mlx", "hf", "gguf", "ollama"] | None = Field(
        None,
        description="peft: the adapter for PEFT; mlx: fused, for mlx_lm; hf: merged, for transformers; gguf and "
        "ollama: merged, for llama.cpp and Ollama.",
    )
    export_path: Folder | None = Field(None, description="What is written (unset: exported/ and the name of --to).")
    export_dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="Type of weights that are not quantized; 'auto' keeps the base's."
    )
    dequantize: bool = Field(False, description="--to mlx: write the whole model without quantization.")
    requantize: Annotated[bool, _no_dequantize] = Field(
        False, description="--to mlx: round fused layers to the base's bits again, which loses part of the adapter."
    )
    gguf_type: Literal["f16", "bf16", "q8_0", "q6_k", "q4_k_m", "q4_0"] = Field(
        "f16", description="--to gguf, ollama: type of the weights: 16 bits, or quantized to 8.5, 6.6, 4.8 or 4.5."
    )
    adapter_only: Annotated[bool, _no_gguf_type] = Field(
        False, description="--to gguf: write the adapter alone, for llama.cpp's --lora."
    )
    check: bool = Field(
        False, description="Compare what was written with the original: log-probabilities and greedy answers."
    )
    check_benchmark: str = Field(DEMO, description="Problems of the check: a name or a file, as for evaluate.")
    check_problems: Annotated[int, Field(ge=1)] = Field(20, description="Problems of the check.")
    check_tokens: Annotated[int, Field(ge=1)] = Field(128, description="Longest answer in the check, in tokens.")
    check_accuracy: Annotated[bool, _with_check] = Field(
        False, description="Grade the check's answers too, and compare the accuracies."
    )
