"""Trained weights for tiny targets: heads that have learned what the target writes after the suite's prompts."""

import torch
from torch import Tensor, nn

from specbench.decode.drafter import IGNORED, Drafter, TrainingBatch
from specbench.decode.method import D, DrafterSource
from specbench.decode.target import CachedModel
from specbench.errors import ConfigError

from . import models

STEPS = {"far": 0, "near": 12, "same": 120}
"""How long each is trained: not at all, until it is right now and then, until it is mostly right."""
_TOKENS = 40

_trained: dict[tuple[type[Drafter], int, str], tuple[nn.Module, Drafter]] = {}


def drafters_of(target: CachedModel) -> DrafterSource:
    """What a method's ``load`` asks for trained weights: ``near``, ``same`` or ``far``, each trained once a target."""

    def drafter(kind: type[D], reference: str) -> D:
        if reference not in STEPS:
            raise ConfigError(f"there are no weights {reference!r} here; the suite has {', '.join(STEPS)}")
        key = kind, id(target.module), reference
        if key not in _trained:
            _trained[key] = target.module, _train(kind, target.sharing_weights(), STEPS[reference])
        found = _trained[key][1]
        assert isinstance(found, kind)
        return found

    return drafter


def _train(kind: type[Drafter], target: CachedModel, steps: int) -> Drafter:
    with torch.random.fork_rng(), torch.inference_mode(mode=False), torch.enable_grad():
        torch.manual_seed(0)
        drafter = kind.new(kind.Settings(), target).bind(target)
        batch = _places(kind, target, drafter.depth)
        optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            drafter(batch).loss.backward()
            optimizer.step()
        with torch.no_grad():
            drafter.rank_accuracy = _accuracy(drafter(batch).hits, batch.counts)
    return drafter.eval().requires_grad_(requires_grad=False)


def _places(kind: type[Drafter], target: CachedModel, depth: int) -> TrainingBatch:
    """Every place of the target's own greedy texts, from each prompt's last token on."""
    hidden, tokens = [], []
    for prompt in models.PROMPTS:
        prompt = tuple(min(token, target.vocab_size - 1) for token in prompt)
        most = min(_TOKENS, (target.max_positions or _TOKENS) - len(prompt) - 1)
        text = torch.tensor([[*prompt, *models.hf_greedy(target.module, prompt, most)]])
        target.allocate(1, text.shape[1] + 1)
        states = target.prefill(text, torch.tensor([text.shape[1]]), (kind.hidden,), all_positions=True)
        beyond = nn.functional.pad(text[0], (0, depth), value=IGNORED)
        for place in range(len(prompt) - 1, text.shape[1] - 2):
            hidden.append(states.hidden[kind.hidden][0, place])
            tokens.append(beyond[place + 1 : place + 2 + depth])
    ahead = torch.stack(tokens)
    labels = ahead[:, 1:].clone()
    counts = (labels != IGNORED).sum(0).clamp_min(1).float()
    return TrainingBatch({kind.hidden: torch.stack(hidden)}, ahead.clamp_min(0), labels, counts)


def _accuracy(hits: Tensor, counts: Tensor) -> tuple[tuple[float, ...], ...]:
    by_rank = hits.diff(dim=1, prepend=torch.zeros_like(hits[:, :1])) / counts[:, None]
    return tuple(tuple(row) for row in by_rank.tolist())
