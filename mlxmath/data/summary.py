"""What a prepared dataset consists of, for people: where its rows came from, and how long they are."""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.cache import TokenRows
from mlxmath.data.tokenize import SKIPPED, SYSTEM_LEFT_OUT
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import counted
from mlxmath.runtime.files import atomic_file, parse_json

MIXTURE = "mixture"
"""The statistic that holds the mixture's reports as JSON."""
NUM_BINS = 12
BAR_WIDTH = 40
MOST_SHOWN = 10
"""So many problems that occur in a benchmark are named."""


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlxmathError(
            f"the statistics of the prepared rows are damaged ({repr(error)[:80]}); remove the cache folder, prepare "
            "the rows anew."
        ) from None


def statistics(rows: TokenRows) -> list[str]:
    """What became of the dataset, one line a fact.

    Raises:
        MlxmathError: the cache's statistics are of odd types.
    """
    return [*facts(rows), *length_histogram(rows.lengths)]


@_readable()
def facts(rows: TokenRows) -> list[str]:
    """The same without the bars.

    Raises:
        MlxmathError: the cache's statistics are of odd types.
    """
    stats: Mapping[str, Any] = defaultdict(int, rows.stats)
    lines = [
        *mixture_lines(stats),
        f"{counted(stats['problems'], 'problem')} became {counted(len(rows), 'row')} of "
        f"{counted(len(rows.tokens), 'token')}, "
        f"{rows.num_targets:,} of them targets",
    ]
    if overlong := stats["overlong_rows"]:
        fate = {"chunk": "split into chunks", "truncate": "cut", "drop": "left out"}[str(stats["overflow"])]
        lost = f"; {stats['lost_target_tokens']:,} targets lost" if stats["lost_target_tokens"] else ""
        lines.append(f"{overlong:,} were longer than {stats['max_seq_len']} tokens and were {fate}{lost}")
    if empty := stats["rows_without_target"]:
        lines.append(f"{empty:,} rows or chunks without a target were left out")
    if failed := stats["not_encodable"]:
        lines.append(f"{counted(failed, 'problem')} left out: the tokenizer cannot write the solution after the prompt")
    lines += [
        f"{counted(stats[name], 'problem')} left out: {name.removeprefix(SKIPPED)}"
        for name in rows.stats
        if name.startswith(SKIPPED)
    ]
    if left_out := stats[SYSTEM_LEFT_OUT]:
        lines.append(
            f"{counted(left_out, 'problem')} with a system message, which the template leaves out; "
            "--template chat keeps it"
        )
    low, median, high, most = np.percentile(rows.lengths, [0, 50, 95, 100])
    mean = rows.lengths.mean()
    lines.append(f"tokens a row: min {low:.0f}, median {median:.0f}, mean {mean:.1f}, 95 % {high:.0f}, max {most:.0f}")
    return lines


@_readable()
def mixture_lines(stats: Mapping[str, Any]) -> list[str]:
    """A table of the sources, and a line for each reason for which rows were left out.

    Raises:
        MlxmathError: the cache's statistics are of odd types.
    """
    reports = parse_json(str(stats.get(MIXTURE, "[]")))
    if not reports:
        return []
    from rich.console import Console
    from rich.table import Table

    table = Table(title="where the problems came from", title_justify="left")
    table.add_column("source")
    for name in ("rows", "unusable", "filtered", "repeated", "in a benchmark", "left", "taken"):
        table.add_column(name, justify="right")
    reasons = []
    for report in reports:
        name = f"{report['name']} ({report['split']})"
        counts = [sum(report[part].values()) for part in ("skipped", "filtered", "contaminated")]
        numbers = [report["read"], counts[0], counts[1], report["repeated"], counts[2], report["left"], report["taken"]]
        table.add_row(name, *(f"{number:,}" for number in numbers))
        if report["instead_of"]:
            reasons.append(f"{name} stands in for {report['instead_of']}, which could not be had")
        if report["is_benchmark"]:
            reasons.append(f"{name} is made of problems of {report['is_benchmark']}, which are kept")
        first = report["first_skipped"]
        reasons += [
            f"{name}: {count:,} unusable: {reason} (the first is {first[reason]})"
            for reason, count in report["skipped"].items()
        ]
        reasons += [f"{name}: {count:,} left out by the filter '{met}'" for met, count in report["filtered"].items()]
        for benchmark, count in report["contaminated"].items():
            ids = report["contaminated_ids"][benchmark]
            more = f" and {count - MOST_SHOWN:,} more" if count > MOST_SHOWN else ""
            reasons.append(
                f"{name}: {counted(count, 'problem')} left out that occur in {benchmark}: "
                f"{', '.join(ids[:MOST_SHOWN])}{more}"
            )
        if report["asked"] and report["taken"] < report["asked"]:
            reasons.append(f"{name}: {report['asked']:,} were asked for, {report['taken']:,} could be had")
        if report["buckets"]:
            reasons.append(f"{name}: {_buckets(report['buckets'])}")
        if report["order"]:
            reasons.append(f"{name}: from easy to hard by {report['order']}")
    text = io.StringIO()
    Console(file=text, width=120, markup=False, emoji=False).print(table)
    return [*text.getvalue().rstrip("\n").splitlines(), *reasons]


def _buckets(buckets: Mapping[str, tuple[int, int]]) -> str:
    parts = ", ".join(f"{name} {taken:,} of {left:,}" for name, (left, taken) in buckets.items())
    most = max(taken for _, taken in buckets.values())
    short = [name for name, (left, taken) in buckets.items() if taken == left and taken < most]
    return f"balanced: {parts}" + (f"; too few of {', '.join(short)}, the others make up for it" if short else "")


def length_histogram(lengths: NDArray[np.int64]) -> list[str]:
    """Rows by their number of tokens, as bars of text."""
    counts, edges = bins(lengths)
    width = len(f"{edges[-1]:,}")
    return [
        f"{low:>{width},} - {high - 1:>{width},}  {count:>9,}  {'█' * round(BAR_WIDTH * count / max(counts))}".rstrip()
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def bins(lengths: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Rows by their number of tokens: counts, and the whole edges around them."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    step = max(1, -(-(high - low) // NUM_BINS))
    edges = list(range(low, high + step, step))
    return np.histogram(lengths, edges)[0].tolist(), edges


def plot_lengths(lengths: NDArray[np.int64], path: Path) -> None:
    """Draw the histogram of the rows' tokens as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(lengths, bins=60, color="#3b6ea5")
    axes.axvline(float(np.median(lengths)), color="#c44", linewidth=1, label=f"median {np.median(lengths):,.0f}")
    axes.set(xlabel="tokens in a row", ylabel="rows", title=f"{len(lengths):,} rows, {int(lengths.sum()):,} tokens")
    axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
