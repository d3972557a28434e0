"""Shapes for a draft, set against what they have to beat, and the files that come of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from specbench.analysis.contest import Tie
from specbench.analysis.design import Bar, Design, Forward, design, with_front, worth_training
from specbench.config import brief
from specbench.errors import ResultsError
from specbench.records.schema import blank_row
from specbench.records.store import Store, write_atomically
from specbench.report import plots
from specbench.report.design_bars import SETTING
from specbench.report.plots import designs as drawing
from specbench.report.tables import csv, number, significant
from specbench.report.words import milliseconds

TABLE = "designs"
SHAPES, EXPERIMENT, FIGURE = "shapes.yaml", "experiment.yaml", "designs"
"""What the files are called."""

USUAL: Mapping[str, Any] = {
    "prompts": {"source": "stdlib", "count": 16, "max_prompt_tokens": 128},
    "decode": {"max_new_tokens": 128},
}
"""Prompts and decoding of an experiment that is to be like no run."""

_DRAFTS = "drafts"


@dataclass(frozen=True)
class Found:
    """All shapes of a search.

    Attributes:
        target: Whose drafts they would be.
        bar: What they have to beat.
        designs: Those that were measured, by depth and latency.
        recommended: Name -> the shape that is worth training under it, the least acceptance that is needed first.
        known: The best known draft model as a design, where it was measured too.
        rows: Rows of ``latencies``: the model of each design is its shape with what all share behind it.
        budget_s: The longest forward that was asked for.
    """

    target: str
    bar: Bar
    designs: tuple[Design, ...]
    recommended: Mapping[str, Design]
    known: Design | None
    rows: pd.DataFrame
    budget_s: float | None

    @property
    def failed(self) -> pd.DataFrame:
        """Rows of shapes that could not be measured."""
        return self.rows[(self.rows["status"] != "ok") & ~self.rows["model"].isin({self.target, self.bar.draft})]


def judged(rows: pd.DataFrame, bar: Bar, target: str, *, budget_s: float | None, keep: int, prefix: str) -> Found:
    """Set measured shapes against the bar.

    Args:
        rows: Rows of ``latencies``, one a shape, and those of the target and the known draft.
        bar: What they have to beat.
        target: Whose drafts they would be, as the rows name it.
        budget_s: The longest forward that is asked for, in seconds; None for any.
        keep: Shapes to recommend, at most.
        prefix: With which their names begin.

    Raises:
        ResultsError: No shape could be measured, or none is as fast as asked for.
    """
    measured = rows[rows["status"] == "ok"]
    shapes = measured[~measured["model"].isin({target, bar.draft})]
    designs = with_front([_design(row, bar, budget_s) for row in shapes.to_dict("records")])
    if not designs:
        raise ResultsError(f"no shape could be measured: {next(iter(rows['reason'].dropna()), 'there is none')}")
    if not any(found.within_budget for found in designs):
        fastest = min(designs, key=lambda found: found.forward.value)
        assert budget_s is not None  # or all would be within it
        raise ResultsError(
            f"no shape has a forward of {milliseconds(1000 * budget_s)}; the fastest, {fastest.shape}, takes "
            f"{milliseconds(1000 * fastest.forward.value)}"
        )
    known = measured[measured["model"] == bar.draft].to_dict("records")
    return Found(
        target=target,
        bar=bar,
        designs=tuple(sorted(designs, key=lambda found: (found.layers, found.forward.value))),
        recommended={f"{prefix}-{found.shape}": found for found in worth_training(designs, keep)},
        known=_design(known[0], bar, None) if known else None,
        rows=rows,
        budget_s=budget_s,
    )


def _design(row: Mapping[Any, Any], bar: Bar, budget_s: float | None) -> Design:
    value = float(row["forward_s"])
    low, high = (value if pd.isna(row[name]) else float(row[name]) for name in ("forward_low_s", "forward_high_s"))
    # Behind the comma stands what all shapes share.
    shape = str(row["model"]).partition(",")[0]
    return design(shape, int(row["layers"]), int(row["parameters"]), Forward(value, low, high), bar, budget_s)


_MODEL = (
    "layers", "hidden", "heads", "feed_forward", "parameters", "weight_bytes", "batch_size", "context_tokens", *SETTING,
    "status", "reason",
)  # fmt: skip


def design_rows(found: Found) -> list[dict[str, Any]]:
    """One row a shape, and one for the known draft; columns as in ``schema.DESIGNS``."""
    names = {entry.shape: name for name, entry in found.recommended.items()}
    by_shape = {entry.shape: entry for entry in found.designs}
    rows = []
    for row in found.rows.to_dict("records"):
        if row["model"] == found.target:
            continue
        is_known = row["model"] == found.bar.draft
        shape = str(row["model"]).partition(",")[0]
        entry = found.known if is_known else by_shape.get(shape)
        rows.append(
            blank_row(TABLE)
            | {name: None if pd.isna(row[name]) else row[name] for name in _MODEL}
            | {
                "target": found.target,
                "kind": "known" if is_known else "candidate",
                "model": row["model"] if is_known else shape,
                "name": names.get(shape),
                "rival": found.bar.rival,
                "rival_s_per_token": found.bar.s_per_token,
                "alpha": found.bar.alpha if is_known else None,
                "within_budget": bool(entry and entry.within_budget),
                "on_front": bool(entry and entry.on_front and not is_known),
            }
            | ({} if entry is None else _findings(entry))
        )
    return rows


def _findings(entry: Design) -> dict[str, Any]:
    return {
        "forward_s": entry.forward.value,
        "forward_low_s": entry.forward.low,
        "forward_high_s": entry.forward.high,
        "draft_s": entry.draft_s,
        "needed_alpha": alpha_of(entry.needed),
        "needed_alpha_low": alpha_of(entry.needed_low),
        "needed_alpha_high": alpha_of(entry.needed_high),
        "needed_tokens": entry.needed.value if entry.needed else None,
        "needed_gamma": entry.needed.gamma if entry.needed else None,
        "pays_alpha": alpha_of(entry.pays),
        "pays_gamma": entry.pays.gamma if entry.pays else None,
        "gain": entry.gain,
    }


def alpha_of(tie: Tie | None) -> float | None:
    """The acceptance of a tie; None where there is no tie."""
    return tie.alpha if tie else None


def write_designs(found: Found, folder: Path, *, name: str, like: Mapping[str, Any]) -> list[Path]:
    """Write the table, the figure, the shapes worth training, and the experiment that will measure them.

    Args:
        found: What was found.
        folder: Where to.
        name: Of the experiment.
        like: What the experiment says of prompts and decoding; what is missing is as `USUAL`.

    Returns:
        What was written; without shapes worth training neither YAML file.
    """
    rows = design_rows(found)
    frame = pd.DataFrame(rows)
    Store(folder).write_part(TABLE, TABLE, rows)
    texts = {f"{TABLE}.csv": csv(frame)}
    if found.recommended:
        texts[SHAPES] = _shapes_yaml(found, folder)
        texts[EXPERIMENT] = _experiment_yaml(found, folder, name, {**USUAL, **like})
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    for stale in {SHAPES, EXPERIMENT} - texts.keys():
        (folder / stale).unlink(missing_ok=True)
    figures = [folder / f"{FIGURE}.{kind}" for kind in ("png", "svg")]
    with plots.themed("light"):
        figure = drawing.designs(frame, found.budget_s)
        for path in figures:
            figure.savefig(path)
    return [folder / f"{TABLE}.parquet", *(folder / name for name in texts), *figures]


def to_beat(found: Found) -> str:
    """What the shapes are set against, in a sentence or two."""
    bar = found.bar
    said = f"To beat: {bar.rival}, {significant(1 / bar.s_per_token)} tokens per second of a row."
    if bar.draft is None or bar.alpha is None or bar.draft_s is None:
        return said
    return (
        f"{said} The best known draft model is {brief(bar.draft)}: {number(bar.alpha)} of its tokens are accepted, and "
        f"each takes {milliseconds(1000 * bar.draft_s)} of a step."
    )


def _shapes_yaml(found: Found, folder: Path) -> str:
    head = f"Drafts for {brief(found.target)} that are worth training. {to_beat(found)}"
    lines = [
        *textwrap.wrap(head, 110, initial_indent="# ", subsequent_indent="# "),
        "#",
        f"# To train them:         specbench train draft {folder / SHAPES}",
        f"# To measure them then:  specbench run {folder / EXPERIMENT}",
        "",
        *(_dumped({key: value}) for key, value in (("target", found.target), ("out", str(folder / _DRAFTS)))),
        "drafts:",
    ]
    for name, entry in found.recommended.items():
        lines.append(f"  - {{name: {name}, shape: {entry.shape}}}  # {_price(entry, found.bar)}")
    return "\n".join(lines) + "\n"


def _price(entry: Design, bar: Bar) -> str:
    took = f"{entry.parameters:,} parameters, {milliseconds(1000 * entry.forward.value)} a forward"
    return f"{took}; as fast as {bar.rival} from an acceptance of {number(alpha_of(entry.needed))} on"


def _experiment_yaml(found: Found, folder: Path, name: str, like: Mapping[str, Any]) -> str:
    """Each draft at the gammas that are best at break-even; beside them the best known one."""
    ties = [entry.needed for entry in found.recommended.values() if entry.needed is not None]
    gammas = sorted({gamma for tie in ties for gamma in (max(1, tie.gamma - 1), tie.gamma, tie.gamma + 1)})
    drafts = {draft: str(folder / _DRAFTS / draft) for draft in found.recommended}
    if found.known is not None and found.bar.draft is not None:
        drafts[brief(found.bar.draft)] = found.bar.draft
    first = found.rows.iloc[0]
    experiment = {
        "name": name,
        "targets": [found.target],
        **like,
        "methods": [
            "autoregressive",
            *(
                {"draft_model": {"draft": draft, "gamma": list(gammas), "label": label}}
                for label, draft in drafts.items()
            ),
        ],
        "machine": {"dtype": str(first["dtype"]), "threads": int(first["threads"])},
    }
    head = f"# Do the drafts of {folder / SHAPES} win, once they are trained?\n\n"
    return f"{head}{_dumped(experiment)}\n"


def _dumped(value: Mapping[str, Any]) -> str:
    return "".join(_dumped_part(key, part) for key, part in value.items()).rstrip()


def _dumped_part(key: str, part: Any) -> str:
    """A plain value on a line of its own; of lists and mappings the innermost parts on one line each."""
    style = None if isinstance(part, dict | list) else False
    return str(yaml.safe_dump({key: part}, default_flow_style=style, sort_keys=False, allow_unicode=True, width=110))
