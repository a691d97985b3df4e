"""`/rate`: pairs of solutions, one after the other, blind; what the ratings show; pairs to train on."""

import shlex
import threading
from collections import Counter
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from mlxmath.data.datasets import BENCHMARKS
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.stats import Interval
from mlxmath.evaluation.wording import interval, p_value, percent, points
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.studio import fresh
from mlxmath.studio.desk import Choice, Desk, Shown, asked_for, chosen, name_of, rating_of, taken_back
from mlxmath.studio.pairs_file import FORMS, Export, exported, form_of, target, told
from mlxmath.studio.place import Studio
from mlxmath.studio.preferences import ENOUGH, between_raters, comparisons, counts, with_grader
from mlxmath.studio.questions import data_files
from mlxmath.studio.ratings import FILE, SIDES, Rating, ratings_of
from mlxmath.studio.render import render, studio_of
from mlxmath.studio.sent import Form, posted
from mlxmath.studio.sources import EVALUATION, NoSourceError, Pair, answered_in, problems_in, source, sources
from mlxmath.studio.tuned import argument, contestants, further

_RATER = "mlxmath_rater"
"""The cookie that remembers a rater's name."""
_YEAR_S = 365 * 24 * 3600
_LOG_BYTES = 4000
_MOST_SHOWN = 20_000
"""Characters of a solution on the page."""
_STALE = "That pair was shown before this studio began, which cannot know its order: it was not rated. Rate this one."
_BOARDS = threading.Lock()
NAMES = {"left": "A", "right": "B"}
"""Solutions as the page names them: on a phone none is left or right."""
SAID = {"left": "A is better", "right": "B is better", "same": "the same", "both bad": "both bad"}
"""Verdicts in words."""


class Board:
    """What the pages of a studio share while it runs."""

    def __init__(self, studio: Studio) -> None:
        self.desk, self.ratings = Desk(), ratings_of(studio)


def _board(request: Request) -> Board:
    """The studio's one board."""
    state = request.app.state
    with _BOARDS:
        if not hasattr(state, "board"):
            state.board = Board(studio_of(request))
    found: Board = state.board
    return found


def _writable(request: Request) -> Studio:
    """The studio.

    Raises:
        HTTPException: it is only to be looked at.
    """
    studio = studio_of(request)
    if studio.read_only:
        raise HTTPException(403, "This studio was opened with --read-only: nothing is rated in it.")
    return studio


def show(request: Request) -> Response:
    """All sources, and what can be chosen of the one that `?source=` names."""
    studio, name = _writable(request), request.query_params.get("source")
    ratings, found = _board(request).ratings.all(), contestants(studio)
    return render(
        request, "rate.html", sources=sources(studio), chosen=source(studio, name) if name else None,
        rater=unquote(request.cookies.get(_RATER, "")), rated=Counter(rating.source for rating in ratings),
        form=fresh.usual(), models=found.models, model=found.model, ticked=found.chosen, benchmarks=BENCHMARKS,
        files=[name for name in map(studio.name, data_files(studio)) if not HALF_A_CHARACTER.search(name)],
    )  # fmt: skip


def show_next(request: Request) -> Response:
    """The next pair."""
    return _next(request, dict(request.query_params))


def _asked(request: Request, form: Mapping[str, str]) -> tuple[Choice, list[Pair], dict[str, Rating]]:
    """What was chosen, its pairs, and this rater's ratings by pair."""
    studio = _writable(request)
    found = source(studio, form.get("source", ""))
    choice = chosen(form, found)
    pairs = problems_in(studio.inside(choice.source)).pairs(found, choice.one, choice.other)
    own = {one.pair: one for one in _board(request).ratings.all() if one.rater == choice.rater}
    return choice, asked_for(pairs, choice), own


def _next(request: Request, form: Mapping[str, str], said: str = "", trouble: str = "") -> Response:
    """The next pair, or that there is none, or none yet."""
    jobs = studio_of(request).jobs
    job = jobs.get(form.get("job", ""))

    def wait(query: str) -> Response:
        log = jobs.log(job, _LOG_BYTES) if job else ""
        return render(request, "rate_waiting.html", query=query, job=job, log=log)

    try:
        choice, pairs, own = _asked(request, form)
    except NoSourceError:  # the command has yet to write it
        if job is None:
            raise
        return wait(urlencode({name: form[name] for name in ("rater", "source", "job") if name in form}))
    pair, num_aside = _board(request).desk.next(pairs, own, choice)
    if pair is None and job is not None and job.is_alive:
        return wait(choice.query)
    if pair is None:
        num_rated = sum(each.key in own for each in pairs)
        return render(
            request, "rate_done.html", choice=choice, num_rated=num_rated, num_pairs=len(pairs), num_aside=num_aside,
            said=said, trouble=trouble,
        )  # fmt: skip
    answer = _page(request, _board(request).desk.show(pair, choice.rater), choice, pairs, own, said, trouble)
    answer.set_cookie(_RATER, quote(choice.rater), max_age=_YEAR_S, path="/rate", httponly=True, samesite="strict")
    return answer


def _page(
    request: Request, shown: Shown, choice: Choice, pairs: list[Pair], own: Mapping[str, Rating], said: str = "",
    trouble: str = "", kept: Mapping[str, str] | None = None,
) -> Response:  # fmt: skip
    return render(
        request, "rate_pair.html", 422 if trouble else 200, shown=shown, sides=SIDES, names=NAMES, choice=choice,
        num_rated=sum(each.key in own for each in pairs), num_pairs=len(pairs), before=own.get(shown.pair.key),
        said=said, trouble=trouble, kept=kept or {}, most_shown=_MOST_SHOWN,
    )  # fmt: skip


def rate(request: Request, form: Form) -> Response:
    """Keep a rating; the next pair."""
    board = _board(request)
    shown = board.desk.get(form.get("ticket", ""))
    if shown is None:
        return _next(request, form, trouble=_STALE)
    try:
        board.ratings.add(rating_of(shown, form))
    except MlxmathError as error:
        choice, pairs, own = _asked(request, form)
        return _page(request, shown, choice, pairs, own, trouble=f"Not kept: {error}", kept=form)
    return _next(request, form, f"kept: {SAID[form['verdict']]}")


def skip(request: Request, form: Form) -> Response:
    """Put a pair aside."""
    desk = _board(request).desk
    if shown := desk.get(form.get("ticket", "")):
        desk.skip(shown)
    return _next(request, form, "skipped")


def take_back(request: Request, form: Form) -> Response:
    """Lay before the rater what was skipped."""
    _board(request).desk.take_back(form.get("rater", ""))
    return _next(request, form)


def undo(request: Request, form: Form) -> Response:
    """Take back the last rating of what was chosen, and show its pair again."""
    choice, pairs, own = _asked(request, form)
    board, by_key = _board(request), {pair.key: pair for pair in pairs}
    last = next((rating for key, rating in reversed(own.items()) if key in by_key), None)
    if last is None:
        return _next(request, form, "there is nothing to undo")
    board.ratings.add(board.ratings.replaced_by(last) or taken_back(last))
    choice, pairs, own = _asked(request, form)
    shown = board.desk.show(by_key[last.pair], choice.rater)
    return _page(request, shown, choice, pairs, own, "undone: rate it again")


def show_gold(request: Request, form: Form) -> Response:
    """The gold answer of the pair that is shown, and a note that it was seen."""
    desk = _board(request).desk
    if (shown := desk.get(form.get("ticket", ""))) is None:
        raise InputError(_STALE)
    desk.show_gold(shown)
    return render(request, "rate_gold.html", gold=shown.pair.gold)


def start(request: Request, form: Form) -> Response:
    """Start an evaluation whose answers are then rated."""
    studio = studio_of(request)
    arguments, folder = fresh.evaluation(studio, form, form.getlist("adapter")), fresh.folder_of(form)
    rater, job = name_of(form), studio.jobs.start(*arguments)
    return RedirectResponse(f"/rate/next?{urlencode({'rater': rater, 'source': folder, 'job': job.id})}", 303)


def show_command(request: Request) -> Response:
    """The command line that the form of `start` stands for."""
    try:
        values = request.query_params
        arguments = fresh.evaluation(studio_of(request), values, values.getlist("adapter"))
    except MlxmathError as error:  # which is no trouble yet: the form is being filled in
        return render(request, "rate_command.html", trouble=str(error))
    return render(request, "rate_command.html", trouble="", line=shlex.join(["mlxmath", *arguments]))


def show_results(request: Request) -> Response:
    """What the ratings show."""
    board = _board(request)
    ratings = board.ratings.all()
    return render(
        request, "rate_results.html", counts=counts(ratings), comparisons=comparisons(ratings),
        raters=between_raters(ratings), grader=with_grader(ratings), enough=ENOUGH, forms=FORMS, file=FILE,
        left_out=board.ratings.left_out, sources=sorted({rating.source for rating in ratings}),
        found=_exported(request, request.query_params), told=told, percent=percent, points=points, p_value=p_value,
        ends=_ends, kappa=_kappa,
    )  # fmt: skip


def _ends(found: Interval) -> str:
    return interval({"low": found.low, "high": found.high})


def _kappa(found: Interval | None) -> str:
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})" if found else "–"


def _exported(request: Request, form: Mapping[str, str]) -> Export:
    """The rows that a form asks for."""
    of = form.get("source", "")
    return exported((one for one in _board(request).ratings.all() if of in ("", one.source)), form_of(form))


def export(request: Request, form: Form) -> Response:
    """Write pairs into the folder."""
    found, name = _exported(request, form), form.get("name", "").strip()
    path = target(studio_of(request), name, overwrite=form.get("overwrite") == "on")
    found.write(path)
    name = studio_of(request).name(path)
    settings = {"loss_type": "kto"} if form.get("form") == "labels" else {}
    settings |= {"dataset": argument(studio_of(request), name)} | _trained_on(request, form)
    line = shlex.join(["mlxmath", "dpo", *(f"--{key.replace('_', '-')}={value}" for key, value in settings.items())])
    return render(
        request, "rate_exported.html", export=found, name=name, line=line, told=told,
        address=f"/new?{urlencode({'command': 'dpo', **settings})}",
    )  # fmt: skip


def _trained_on(request: Request, form: Mapping[str, str]) -> dict[str, str]:
    """Settings of a run that begins where the rated answers come from: their model, and its adapter if it is one."""
    studio, of = studio_of(request), form.get("source", "")
    names = {one.source for one in _board(request).ratings.all() if of in ("", one.source) and one.kind == EVALUATION}
    found = [each for name in sorted(names) for each in answered_in(studio, name)]
    folders, adapters = (dict.fromkeys(name for kind, name in found if kind == each) for each in ("model", "adapter"))
    if len(folders) != 1:
        return {}
    return further(studio, next(iter(folders)), next(iter(adapters)) if len(adapters) == 1 else None)


def download(request: Request) -> Response:
    """The same pairs as a download."""
    data = _exported(request, request.query_params).data
    return Response(
        data, media_type="application/x-ndjson", headers={"Content-Disposition": 'attachment; filename="pairs.jsonl"'}
    )


ROUTES = [
    Route("/rate", show),
    Route("/rate/next", show_next),
    Route("/rate/verdict", posted(rate), methods=["POST"]),
    Route("/rate/skip", posted(skip), methods=["POST"]),
    Route("/rate/skipped", posted(take_back), methods=["POST"]),
    Route("/rate/undo", posted(undo), methods=["POST"]),
    Route("/rate/gold", posted(show_gold), methods=["POST"]),
    Route("/rate/command", show_command),
    Route("/rate/start", posted(start), methods=["POST"]),
    Route("/rate/results", show_results),
    Route("/rate/export", posted(export), methods=["POST"]),
    Route("/rate/pairs.jsonl", download),
]
