"""The figures: tidy frames -> matplotlib, each with its title, its sentence on how to read it, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from specbench.report.forwards import EQUAL
from specbench.report.metrics import Frames
from specbench.report.metrics import series as series_of
from specbench.report.plots import beside, drafts, forwards, limits, queries, rules, skill, speed, steps, theory, trees
from specbench.report.plots.style import THEMES, Look, Sketch, adaptive, framed, look, mark, themed
from specbench.report.tables import percent
from specbench.report.words import text_notes

__all__ = ["FIGURES", "THEMES", "Drawing", "Look", "adaptive", "look", "look_of", "mark", "themed"]

_HEADLINE = "requests.parquet, headline pass"
_PHASE = "steps.parquet, phase pass"


@dataclass(frozen=True)
class Drawing:
    """One figure of a report.

    Attributes:
        heading: What the page calls it.
        title: What it shows; stands in the figure.
        reading: How to read it; stands below it on the page.
        rows: The stored rows that it is made of.
        table: The file with its numbers, in ``tables/``.
        sketch: Draws it; returns None where the data has no such axis.
    """

    heading: str
    title: str
    reading: str
    rows: str
    table: str
    sketch: Callable[[Frames, Look], Sketch | None]

    def draw(self, frames: Frames, style: Look, footer: str) -> Figure | None:
        """The whole figure, or None where the data has no such axis. Call it within `themed`."""
        sketch = self.sketch(frames, style)
        return None if sketch is None else framed(sketch, self.title, f"{footer} Rows: {self.rows}.", style)


def look_of(frames: Frames, theme: str = "light") -> Look:
    """The look of all arms of a report."""
    series = dict(zip(frames.summary["arm"], frames.summary["series"], strict=True))
    series |= {arm: arm for draft, arm in drafts.leaders(frames).items() if arm == draft}
    series |= {arm: series_of(arm) for arm in frames.composed_arms["arm"].astype(str)}
    return look([*series], theme, series, text_notes(frames.summary))


_INTERVAL = "Bars are 95 % intervals over batches of prompts; below four batches there is none. "
_ALONG = "tables/along.csv"
_BEAMS = "tables/beams.csv"
_BEST = "tables/best_drafts.csv"
_FORWARDS = "latencies.parquet"
_COMPOSED = "requests.parquet, steps.parquet; composed: traces.parquet, latencies.parquet"
_AT_BEST = (
    "Each draft stands at its own best gamma, chosen on one half of the batches of prompts and shown on the other. "
    "Hollow marks were never run: they are composed of a trace and forward times, with the host's time of the "
    "autoregressive arm. "
)
_HOLLOW = "Hollow marks were published, on other hardware, and compare in their shape alone. "

FIGURES: Mapping[str, Drawing] = {
    "speedup": Drawing(
        "Speed-up",
        "Speed-up of each method over autoregressive decoding",
        "Further right is faster; the line at 1 is the core's autoregressive arm, on the same prompts and in the same "
        "blocks. Large marks are all batches together with their 95 % interval, small dots the single timed batches. "
        "The band at 1 is the A/A noise floor: what the same work measured twice differs by. Hollow marks do not keep "
        "the target's text. An interval needs four batches of prompts.",
        _HEADLINE,
        "tables/summary.csv",
        speed.speedup,
    ),
    "published": Drawing(
        "Beside the paper",
        "Speed-up and tokens per step, measured here and published",
        "Filled marks were measured here, hollow ones published, on the hardware that the legend names and for larger "
        "targets: the order of the methods compares, their distance does not. Bars are 95 % intervals over batches of "
        "prompts.",
        _HEADLINE,
        "tables/published.csv",
        beside.methods,
    ),
    "batch_size": Drawing(
        "Batch size",
        "Throughput of a request and of a batch, speed-up and occupancy by batch size",
        "From above: what one request sees; the batch until its first row ends, for so long it is full, and its "
        "speed-up; occupancy, the share of slot-time in which a row still decoded: where it falls, rows end at other "
        "steps, and the whole batch gains less than the full one. " + _HOLLOW + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.BATCH_SIZE),
    ),
    "category": Drawing(
        "Category",
        "Speed-up of each method by category of prompt",
        "Each field is the speed-up as one request sees it, above its 95 % interval over batches; blue is faster than "
        "autoregressive decoding, orange slower. A field without colour is not resolved: its interval holds 1, or "
        "there are fewer than four batches, or it lies below the A/A noise floor.",
        _HEADLINE,
        _ALONG,
        speed.by_category,
    ),
    "context_length": Drawing(
        "Context length",
        "Speed-up of each method by length of the prompt",
        "Prompts are grouped by powers of two of their tokens; a point is the speed-up as one request of that group "
        "sees it. " + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.CONTEXT),
    ),
    "gamma": Drawing(
        "Gamma",
        "Speed-up and tokens per step by gamma",
        "Above: a longer draft pays until its forwards and the verification cost more than the tokens that it adds, so "
        "the curve has one top. Below: tokens per step only grow, and level off as later positions are accepted less "
        "often. " + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.GAMMA),
    ),
    "width": Drawing(
        "Beam width",
        "Speed-up and tokens per step by beam width",
        "Below: more beams hold the right tokens more often, and less is gained from each doubling. Above: a wider "
        "beam pays until the larger draft and its verification cost more than that. " + _HOLLOW + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.WIDTH),
    ),
    "length": Drawing(
        "Beam length",
        "Speed-up and tokens per step by beam length",
        "A beam is drafted token by token, so length costs time where width hardly does; tokens per step level off as "
        "late positions are accepted less often. " + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.LENGTH),
    ),
    "beam_shape": Drawing(
        "Beam width and length",
        "Speed-up by beam width and length",
        "Blue is faster than autoregressive decoding, orange slower; a field without colour is not resolved. The best "
        "field of a table is chosen by the very numbers that it shows, so its speed-up is a little too high.",
        _HEADLINE,
        _BEAMS,
        trees.beam_shape,
    ),
    "prefix_tree": Drawing(
        "Shared prefixes",
        "What the prefix tree saves of the beams",
        "Above: solid is what was verified, dashed what would be if every beam were verified whole. Below: the share "
        "saved with the root counted in every beam, as the paper counts, and bars from the 1st to the 99th percentile "
        "of the steps; dotted counts the drafted tokens alone. The dashed box is the published range.",
        _HEADLINE,
        _BEAMS,
        trees.prefix_tree,
    ),
    "verified_nodes": Drawing(
        "Shape of the tree",
        "Speed-up and tokens per step by verified draft nodes",
        "Points above one another verify equally many nodes, so the higher shape makes more of the same budget; above, "
        "the time of drafting counts as well. Lines join arms that differ in one option. Hollow marks do not keep the "
        "target's text. " + _INTERVAL,
        _HEADLINE,
        "tables/summary.csv",
        trees.verified_nodes,
    ),
    "rules": Drawing(
        "Acceptance rules",
        "Tokens per step and speed-up under an exact and a lossy rule",
        "What the hollow line lies above the filled one the lossy rule has accepted too much: those tokens, and the "
        "speed that they bring, are not the target's. In the middle the same as a share, with its 95 % interval over "
        "batches of prompts; an exact rule has 0.",
        _HEADLINE,
        "tables/rules.csv",
        rules.rules,
    ),
    "temperature": Drawing(
        "Temperature",
        "Speed-up and tokens per step by temperature",
        "A flat line means that sampling costs the method nothing; tokens per step usually fall as the temperature "
        "rises, for target and draft then agree less often. " + _INTERVAL,
        _HEADLINE,
        _ALONG,
        partial(speed.along, speed.TEMPERATURE),
    ),
    "draft_latency": Drawing(
        "Draft latency",
        "Throughput by draft latency, and the closed form",
        "Only the time of the draft was raised, so the acceptance is the same along a line. The line is the closed "
        "form through the ringed arm; the other points judge it. Where it crosses the dotted line lies the break-even "
        "draft latency. A cross is a latency below the draft's own: no run can keep it, and the closed form answers. "
        + _INTERVAL,
        f"{_HEADLINE} and {_PHASE}",
        "tables/latency_axis.csv",
        theory.draft_latency,
    ),
    "drafts": Drawing(
        "Draft models",
        "Throughput, tokens per step and draft latency by draft model",
        "Read the rows together: a draft whose tokens per step are higher may still give less throughput, because its "
        "forwards take longer. " + _AT_BEST + _INTERVAL,
        _COMPOSED,
        _BEST,
        drafts.drafts,
    ),
    "draft_depth": Drawing(
        "Depth at equal parameters",
        "Throughput, tokens per step and draft latency by depth, at equal parameters",
        f"These drafts have equally many parameters, within {percent(EQUAL)}, in more or fewer layers. "
        + _AT_BEST
        + _INTERVAL,
        _COMPOSED,
        "tables/depths.csv",
        drafts.by_depth,
    ),
    "lookahead": Drawing(
        "Lookahead",
        "Throughput and tokens per step by gamma, for each draft model",
        "Throughput has one top: behind it a further draft token costs more than it brings. Tokens per step only "
        "grow, and level off. Dashed lines were never run: they are composed of a trace and forward times. Bands are "
        "95 % intervals over batches of prompts.",
        _COMPOSED,
        "tables/drafts.csv",
        drafts.lookahead,
    ),
    "step_by_draft": Drawing(
        "A step by draft model",
        "Draft, verification and host time of a step by draft model",
        "Where the draft's part grows from one draft to the next, more must be accepted to pay for it. " + _AT_BEST,
        _COMPOSED,
        _BEST,
        drafts.step_by_draft,
    ),
    "skill": Drawing(
        "Draft skill and acceptance",
        "Tokens per step of each draft over its skill as a language model",
        "If skill told which draft is accepted more often, the marks would lie on a rising line (over perplexity a "
        "falling one), and the rank correlation would be near 1 or -1. Bars are 95 % intervals, over texts or "
        "questions sideways and over prompts upwards; p is the chance of such an order among unrelated columns.",
        "scores.parquet; acceptance: traces.parquet, or requests.parquet",
        "tables/skill.csv",
        skill.skill,
    ),
    "forward_depth": Drawing(
        "A forward over depth",
        "Time of a forward over depth, at equal parameters",
        "All models of a panel weigh the same, so a line that rises says that depth costs time of its own: launches "
        "and the waiting between them. A line that compiling flattens says that much of it was overhead, no law. "
        "Bars are 95 % intervals of the median over rounds; slopes are least squares with theirs.",
        _FORWARDS,
        "tables/forwards.csv",
        forwards.depth,
    ),
    "forward_width": Drawing(
        "A forward over width",
        "Time of a forward over width, at equal depth",
        "All models of a panel have equally many layers, so a line that rises says that weights cost time: reading "
        "and multiplying them. Bars are 95 % intervals of the median over rounds.",
        _FORWARDS,
        "tables/forwards.csv",
        forwards.width,
    ),
    "forward_tokens": Drawing(
        "A forward over its tokens",
        "Time of a forward over the tokens that it reads in all rows, by batch size",
        "Where a line is flat, more tokens cost nothing: weights are read once for all of them, and a verification "
        "takes as long as a single token. Where it rises in proportion, products are what takes the time. Both axes go "
        "by factors. Bars are 95 % intervals of the median over rounds.",
        _FORWARDS,
        "tables/forwards.csv",
        queries.tokens,
    ),
    "changes": Drawing(
        "What would have to change",
        "What each draft would need to be as fast as the best one",
        "Left: the tokens that a step would have to emit at the draft's best gamma. Right: how short a draft forward "
        "would have to be, at the gamma that is best by then. Either change alone would do. The best draft was chosen "
        "by what was measured on half of the prompts, so another one may be predicted to be faster.",
        f"{_HEADLINE} and {_PHASE}",
        "tables/changes.csv",
        theory.changes,
    ),
    "predicted": Drawing(
        "Predicted and measured",
        "Predicted against measured throughput",
        "On the line a prediction is exact; hollow marks miss by more than the band. The closed forms take acceptance "
        "and phase times from the run, and throughput, which they do not see, judges them. Composed throughput takes "
        "acceptance from a trace and times from the table of forwards, and sees nothing of the cell. Bars are 95 % "
        "intervals over batches of prompts.",
        _COMPOSED,
        "tables/forecasts.csv and tables/composed.csv",
        theory.predicted,
    ),
    "tokens_against_efficiency": Drawing(
        "Tokens per second against tokens per step",
        "Decode tokens per second against block efficiency",
        "Speed is block efficiency over step time, so each ray through the origin is one step time: an arm moves along "
        "its ray when more is accepted, and to a steeper one when its step gets shorter. Large marks are all batches, "
        "dots the single ones.",
        _HEADLINE,
        "tables/summary.csv",
        speed.tokens_against_efficiency,
    ),
    "alpha_against_latency": Drawing(
        "Acceptance against draft latency",
        "What acceptance and draft latency would give: contours of the speed-up",
        "Thin lines are equal speed-up by the closed form, with the verification and everything else of a step as "
        "measured; the thick one is break-even, and in the shaded part drafting loses. An arm gains by moving up "
        "(more accepted) or left (a faster draft). Alpha is the acceptance, equal at every position, that gives the "
        "arm's tokens per step. Only chains of one gamma are shown.",
        f"{_HEADLINE} and {_PHASE}",
        "tables/costs.csv",
        steps.alpha_against_latency,
    ),
    "step_time": Drawing(
        "Where a step's time goes",
        "Time of a decode step by phase",
        "The longer a part, the more of a step it takes; at the right the step's wall time and the tokens that it "
        "emits per row. Host and other is the wall time that no phase accounts for.",
        _PHASE,
        "tables/step_time.csv",
        steps.step_time,
    ),
    "limits": Drawing(
        "How near the limit",
        "Each step beside the least time that this machine allows for it",
        "The frame is the measured step, and what is filled the time that its weights, keys, values and products take "
        "at the best pace of this machine; at the right the filled share. What is empty is overhead: launches, "
        "the host, masks, norms, accepting. A method can only move the filled part, so compare methods where little is "
        "empty.",
        "requests.parquet, headline pass; limits.parquet, ceilings.parquet",
        "tables/summary.csv",
        limits.limits,
    ),
    "acceptance": Drawing(
        "Acceptance by position",
        "Acceptance by draft position: marginal above, conditional below",
        "Above: how often a step keeps at least so many draft tokens, over all steps. Below: how often a position is "
        "accepted once it was drafted and all before it were accepted; points that rest on fewer than "
        f"{steps.MIN_REACHED} steps are left out.",
        _HEADLINE,
        "tables/acceptance.csv",
        steps.acceptance,
    ),
    "accepted_lengths": Drawing(
        "Accepted lengths",
        "How many draft tokens a step keeps",
        "Each bar is all steps of an arm, from those that kept nothing at the left. A step that keeps nothing still "
        "emits the target's own token, and its whole draft was for nothing.",
        _HEADLINE,
        "tables/accepted_lengths.csv",
        steps.accepted_lengths,
    ),
}
"""File name -> figure, in the order of the page."""
