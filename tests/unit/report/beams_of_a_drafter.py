"""A run of a beam search that has everything its figures ask for, and the numbers that it was made from."""

from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan

WIDTHS, LENGTHS = (1, 2, 4), (3, 5)
SHARED = {(1, 3): 2, (2, 3): 3, (4, 3): 6, (1, 5): 4, (2, 5): 6, (4, 5): 10}
"""Width and length -> draft nodes that are left of the beams."""

BESIDE = "name: x\nbeside: [redrafter-table-1, redrafter-table-3, redrafter-table-4, redrafter-figure-6]\n"


def beam(width, length, *, name=None, label="redrafter", drafter="pico-redrafter", **more):
    """One arm of a beam search, as the grid would name it."""
    settings = {"drafter": drafter, "width": width, "length": length, "nodes": None, "branching": None, "top_k": None}
    return Arm(
        name or f"{label} width={width} length={length}", "redrafter", alpha=0.6 + 0.05 * width, gamma=length - 1,
        draft_s=0.0004, label=label, settings=settings | more.pop("settings", {}),
        nodes=SHARED.get((width, length)), **more,
    )  # fmt: skip


BEAMS = tuple(beam(width, length) for width in WIDTHS for length in LENGTHS)
MEDUSA = Arm("medusa", "medusa", alpha=0.6, gamma=3, draft_s=0.0002, settings={"heads": "h", "tree": "t"}, nodes=20)


def plan(arms=(*BEAMS, MEDUSA), **settings):
    """Few prompts at two batch sizes, set beside all that is published."""
    usual = {"batch_sizes": (1, 2), "prompts": 4, "repeats": 1, "max_new_tokens": 16, "run": {"experiment": BESIDE}}
    return Plan((AUTOREGRESSIVE, TWIN, *arms), **usual | settings)
