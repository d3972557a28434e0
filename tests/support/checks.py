"""Two independent checks of one model family; both return what they found, so that planted faults can be shown to it.

``logit_difference`` compares the core's forward over ragged batches of random trees with plain forwards without any
cache. ``wrong_rows`` compares the ids of every method with those of ``transformers`` generate.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import torch

from specbench.decode.method import Method
from specbench.decode.target import CachedModel
from specbench.decode.tree import lay_out

from . import decoding, models, trees


@torch.no_grad()
def logit_difference(name: str, seed: int = 0, rounds: int = 2, *, deep: bool = False) -> float:
    """The largest difference of a logit over a few steps of random trees, each followed by a compaction.

    Deep trees have paths longer than the window of the windowed families.
    """
    generator = torch.Generator().manual_seed(seed)
    size, depth = (18, 17) if deep else (7, 4)
    module = models.target(name)
    model = decoding.family(name)
    texts = [list(prompt) for prompt in models.PROMPTS[:5]]
    lengths = torch.tensor([len(text) for text in texts])
    longest = int(lengths.max())
    model.allocate(5, longest + 96)
    padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    first = model.prefill(padded, lengths).logits[:, 0]
    worst = max(
        float((models.plain_logits(module, text)[-1] - row).abs().max()) for text, row in zip(texts, first, strict=True)
    )
    roots = torch.randint(0, models.VOCAB, (5,), generator=generator).tolist()
    for _ in range(rounds):
        parents = (
            [trees.late_chain(size, row + 2) for row in range(5)]
            if deep
            else trees.random_parents(5, size, generator, max_depth=depth, pad=0.2)
        )
        tokens = torch.randint(0, models.VOCAB, (5, size + 1), generator=generator)
        tokens[:, 0] = torch.tensor(roots)
        layout = lay_out(torch.tensor(parents), max_depth=depth)
        logits = model.verify(layout, tokens, lengths, int(lengths.max())).logits
        kept = []
        for row, text in enumerate(texts):
            alive = [0, *(node + 1 for node in range(size) if trees.path(parents[row], node) is not None)]
            for node in alive:
                way = [text[0:], [roots[row]], [int(tokens[row, i]) for i in trees.path_nodes(parents[row], node)[1:]]]
                sequence = [token for part in way for token in part]
                expected = models.plain_logits(module, sequence)[-1]
                worst = max(worst, float((expected - logits[row, node]).abs().max()))
            # Keep the path to a random node, deepest ones preferred, so that something has to move.
            chosen = max(alive, key=lambda node, row=row: len(trees.path_nodes(parents[row], node)))
            kept.append(trees.path_nodes(parents[row], chosen))
        columns = max(map(len, kept))
        path = torch.tensor([nodes + [-1] * (columns - len(nodes)) for nodes in kept])
        count = torch.tensor([len(nodes) for nodes in kept])
        model.cache.compact(path, count, lengths)
        lengths = lengths + count
        for row, nodes in enumerate(kept):
            texts[row] += [int(tokens[row, node]) for node in nodes]
        roots = torch.randint(0, models.VOCAB, (5,), generator=generator).tolist()
    return worst


class Arm(NamedTuple):
    """One run: a method, how many rows from which on, and whether EOS counts."""

    label: str
    build: Callable[[CachedModel, str], Method]
    rows: int
    first: int
    with_eos: bool
    max_new_tokens: int = 16


def _draft(**options: object) -> Callable[[CachedModel, str], Method]:
    return lambda target, name: decoding.draft_model(target, decoding.drafts_of(name), **options)


def _builds() -> Iterator[tuple[str, Callable[[CachedModel, str], Method]]]:
    yield "autoregressive", lambda target, name: decoding.autoregressive()
    for gamma in range(1, 9):
        yield f"near draft, gamma {gamma}", _draft(draft="near", gamma=gamma)
    for gamma in (1, 4, 8):
        yield f"the target as its own draft, gamma {gamma}", _draft(draft="same", gamma=gamma)
    yield "strange draft, gamma 3", _draft(draft="far", gamma=3)
    for draft, branching, proposal in (
        ("same", [2, 2, 1], "top_k"),
        ("near", [3, 2, 1, 1], "top_k"),
        ("near", [5], "top_k"),
        ("near", [1, 3, 2], "iid"),
        ("near", [2, 2], "without_replacement"),
        ("far", [2, 2], "top_k"),
    ):
        yield (
            f"{draft} draft, {proposal} tree {branching}",
            _draft(draft=draft, tree={"branching": branching, "proposal": proposal}),
        )
    yield "near draft, heuristic stop", _draft(draft="near", gamma=8, stop={"kind": "heuristic", "start": 3})
    yield "near draft, confidence stop", _draft(draft="near", gamma=6, stop={"kind": "confidence", "threshold": 0.2})
    yield "lookup", lambda target, name: decoding.prompt_lookup()
    yield "lookup of single tokens", lambda target, name: decoding.prompt_lookup(max_ngram=1, gamma=3)


def arms(*, thorough: bool = False) -> Iterator[Arm]:
    """Every method over batches of 1 to 8 rows, in turn with and without EOS (thorough: both), some cut by length."""
    sizes, firsts = cycle((8, 3, 5, 1, 7, 2, 6, 4)), cycle(range(8))
    for number, (label, build) in enumerate(_builds()):
        most = 24 if thorough else 16
        if thorough or number % 2 == 0:
            yield Arm(label, build, next(sizes), next(firsts), with_eos=False, max_new_tokens=most)
        if thorough or number % 2 == 1:
            yield Arm(label, build, 8, 0, with_eos=True, max_new_tokens=most)
    for most in (1, 2, 3, 7, 13):
        build = _draft(draft="same", gamma=4)
        yield Arm(
            f"the target as its own draft, {most} tokens", build, 4, most % 8, with_eos=False, max_new_tokens=most
        )


def quick_arms() -> Iterator[Arm]:
    """What planted faults are shown: drafts accepted whole and in part, chain and tree."""
    yield Arm(
        "the target as its own draft, gamma 4", _draft(draft="same", gamma=4), 3, 0, with_eos=False, max_new_tokens=14
    )
    tree = _draft(draft="same", tree={"branching": [2, 2, 1]})
    yield Arm("tree of the target itself", tree, 3, 0, with_eos=False, max_new_tokens=14)


class Outcome(NamedTuple):
    """Rows whose text is wrong, and what the run had to deal with."""

    wrong: list[str]
    rows_cut_inside_a_draft: int
    rows_ended_by_eos: int
    accepted: int
    refused: int


def wrong_rows(name: str, chosen: Iterator[Arm]) -> Outcome:
    """Run the arms of a family and name every row that differs from ``transformers``."""
    wrong, cut, ended, accepted, refused = [], 0, 0, 0, 0
    target, eos = decoding.family(name), models.eos_for(name)
    for arm in chosen:
        prompts = list(islice(cycle(models.PROMPTS), arm.first, arm.first + arm.rows))
        eos_ids = eos if arm.with_eos else ()
        trace = decoding.decode(target, arm.build(target, name), prompts, arm.max_new_tokens, eos_ids=eos_ids)
        for index, (prompt, row) in enumerate(zip(prompts, trace.rows, strict=True)):
            expected = models.greedy_continuation(name, prompt, arm.max_new_tokens, eos_ids)
            reason = "eos" if expected[-1] in eos_ids else "length"
            if row.output_ids != expected or row.finish_reason != reason:
                wrong.append(
                    f"{arm.label}, row {index} of {arm.rows}: {row.output_ids} for {expected}, {row.finish_reason}"
                )
            cut += row.finish_reason == "eos" and row.overshoot_tokens > 0
            ended += row.finish_reason == "eos"
            accepted += sum(row.accepted_per_step)
            refused += sum(row.drafted_depth_per_step) - sum(row.accepted_per_step)
    return Outcome(wrong, cut, ended, accepted, refused)
