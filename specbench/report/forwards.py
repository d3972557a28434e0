"""Models by their shape: what each weighs, what a forward of it takes, and which differ in depth or width alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from specbench.analysis.latencies import AXES, SETTING, fit
from specbench.errors import ResultsError
from specbench.report.cells import Results

EQUAL = 0.05
"""How far the parameters of two models may lie apart for them to count as equally large."""

SHAPE = (
    "model", "layers", "hidden", "heads", "kv_heads", "head_dim", "feed_forward", "vocab", "parameters",
    "weight_bytes", "random_weights",
)  # fmt: skip
"""One row a model whose forwards were measured; the counts are those of its tensors, never of its name."""

FORWARDS = (*SHAPE, *AXES, "mode", *SETTING, "forward_ms", "low_ms", "high_ms", "rounds", "status", "reason")
"""One row a point: the median forward with its 95 % interval over rounds."""

LINES = ("panel", "along", "title", "mode", "x", "model", "parameters", "forward_ms", "low_ms", "high_ms")
"""Points ``along`` depth, of models of equal parameters, or width, of models of equal depth: ``x``."""

SLOPES = ("panel", "along", "title", "mode", "slope_ms", "slope_low_ms", "slope_high_ms", "constant_ms", "points")
"""What one more layer, or a width of one more, adds to a forward: least squares with 95 % intervals."""


def forwards(results: Results) -> pd.DataFrame:
    """Every point that was measured or could not be; of a point that was measured twice, the later run's."""
    rows = results.latencies.sort_values("run_id", kind="stable")
    rows = rows.drop_duplicates(["model", "mode", *AXES, *SETTING], keep="last")
    seconds = {"forward_ms": "forward_s", "low_ms": "forward_low_s", "high_ms": "forward_high_s"}
    return rows.assign(**{ms: 1000 * rows[name] for ms, name in seconds.items()})[list(FORWARDS)].reset_index(drop=True)


def shapes(found: pd.DataFrame) -> pd.DataFrame:
    """One row a model, the largest first."""
    first = found.drop_duplicates("model")[list(SHAPE)]
    return first.sort_values(["parameters", "layers"], ascending=[False, True], ignore_index=True)


def equal_sizes(models: pd.DataFrame) -> list[pd.DataFrame]:
    """Models in groups whose parameters lie within `EQUAL` of the group's smallest, from small to large.

    Args:
        models: Rows with ``parameters``.
    """
    groups: list[list[Any]] = []
    for index, parameters in models["parameters"].sort_values().items():
        if not groups or parameters > (1 + EQUAL) * models.loc[groups[-1][0], "parameters"]:
            groups.append([])
        groups[-1].append(index)
    return [models.loc[group] for group in groups]


def lines(found: pd.DataFrame) -> pd.DataFrame:
    """Single-token forwards over depth at equal parameters, and over width at equal depth.

    A line has at least three models. Of several batch sizes and contexts the smallest is taken: what a draft meets.
    """
    ok = found[(found["status"] == "ok") & (found["query_tokens"] == 1)]
    ok = ok[(ok["batch_size"] == ok["batch_size"].min()) & (ok["context_tokens"] == ok["context_tokens"].min())]
    rows = [row for _, own in ok.groupby(list(SETTING), sort=False) for row in _in_setting(own)]
    return pd.DataFrame(rows, columns=LINES)


def _in_setting(own: pd.DataFrame) -> Iterator[dict[str, Any]]:
    models = own.drop_duplicates("model")
    for group in equal_sizes(models):
        if group["layers"].nunique() >= _LEAST:
            size = significant_count(float(group["parameters"].median()))
            yield from _line(own, group, ("depth", "layers", f"{size} parameters each"))
    for layers, group in models.groupby("layers", sort=True):
        for family in _same_family(group):
            if family["hidden"].nunique() >= _LEAST:
                yield from _line(own, family, ("width", "hidden", f"{layers} layer{'' if layers == 1 else 's'} each"))


_LEAST = 3


def _same_family(group: pd.DataFrame) -> list[pd.DataFrame]:
    """Models that share their vocabulary, whose output matrix would else pass for width."""
    return [own for _, own in group.groupby("vocab", sort=True)]


def _line(own: pd.DataFrame, group: pd.DataFrame, kind: tuple[str, str, str]) -> Iterator[dict[str, Any]]:
    along, axis, title = kind
    points = own[own["model"].isin(group["model"])]
    for row in points.sort_values(["mode", axis], ascending=[False, True]).to_dict("records"):
        shared = {name: row[name] for name in LINES if name in row}
        yield shared | {"panel": f"{along}: {title}", "along": along, "title": title, "x": row[axis]}


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """A straight line through each line of points; none where a fit has too few of them."""
    rows = []
    for (panel, along, title, mode), own in points.groupby(["panel", "along", "title", "mode"], sort=False):
        try:
            found = fit(own.assign(forward_s=own["forward_ms"] / 1000), ["x"])
        except ResultsError:
            continue
        slope, constant = found.coefficients["x"], found.coefficients["constant"]
        values = (1000 * slope.value, 1000 * slope.low, 1000 * slope.high, 1000 * constant.value, found.points)
        rows.append(dict(zip(SLOPES, (panel, along, title, mode, *values), strict=True)))
    return pd.DataFrame(rows, columns=SLOPES)


def significant_count(value: float) -> str:
    """A large number as people say it: ``3.4 M``, ``1.3 B``."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def known_sizes(results: Results, shapes_of_models: pd.DataFrame) -> pd.DataFrame:
    """Columns ``model``, ``parameters`` and ``layers`` of every model that something is known of.

    Forward times know both, scores and the notes of a run only parameters.
    """
    parts: Sequence[pd.DataFrame] = [
        shapes_of_models[["model", "parameters", "layers"]],
        results.scores[["model", "parameters"]],
        pd.DataFrame(
            [
                {"model": name, "parameters": model["parameters"]}
                for notes in results.notes
                for name, model in notes.get("models", {}).items()
            ],
            columns=["model", "parameters"],
        ),
    ]
    filled = [part for part in parts if len(part)]
    found = pd.concat(filled or [parts[0]], ignore_index=True).reindex(columns=["model", "parameters", "layers"])
    return found.drop_duplicates("model", ignore_index=True)
