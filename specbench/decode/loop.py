"""The one loop: prefill, then draft, verify, accept, update, until every row has met EOS or its length.

Nothing in a step asks the device a question. On a GPU the host reads the outcome of step k after it has launched step
k + 1; the one step too many that this costs at the end changes no row and is neither counted nor timed.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.decode.acceptance import Decision, Greedy, Rule, Verification
from specbench.decode.method import Caps, HostReads, Method, Prefill, RowView, StepResult, TokenTree
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.target import CachedModel, Output
from specbench.decode.trace import BatchTrace, NullWatch, RowTrace, Watch
from specbench.decode.tree import Layout, Topology, path_to
from specbench.errors import ConfigError, ContractError, UnsupportedError


@dataclass(frozen=True)
class Requests:
    """One batch of prompts.

    Attributes:
        prompts: Token ids, each at least one.
        keys: A stable integer for every prompt and sample, below 2**31: the only thing, beside the seed, that chance
            depends on.
    """

    prompts: list[list[int]]
    keys: list[int]


@dataclass(frozen=True)
class Decoding:
    """How the batch is decoded; the same for every method.

    Attributes:
        max_new_tokens: Tokens of a row, the prefill's included.
        min_new_tokens: EOS is impossible before this many.
        temperature: 0 is greedy.
        top_k: None for all tokens.
        top_p: None for all tokens.
        rule: What accepts a draft.
        seed: Of all randomness.
        eos_ids: Tokens that end a text; empty to ignore EOS.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    rule: Rule = field(default_factory=Greedy)
    seed: int = 0
    eos_ids: tuple[int, ...] = ()


class State(NamedTuple):
    """Where every row stands: all tensors (B,), but ``tokens`` (B, T), whose last column is trash."""

    root: Tensor
    lengths: Tensor
    budget: Tensor
    active: Tensor
    steps: Tensor
    tokens: Tensor


class Emission(NamedTuple):
    """What one step added to each row: (B, A) tokens with -1 beyond them, and two counts (B,)."""

    tokens: Tensor
    emitted: Tensor
    accepted: Tensor


def generate(
    target: CachedModel,
    method: Method,
    requests: Requests,
    decoding: Decoding,
    watch: Watch | None = None,
    draft_pacer: AbstractContextManager[None] | None = None,
    trace: BatchTrace | None = None,
) -> BatchTrace:
    """Decode one batch to its end.

    Args:
        target: The model whose text this is.
        method: Loaded, and free of any other batch.
        requests: The prompts.
        decoding: How.
        watch: Told where the loop is.
        draft_pacer: Wraps every draft phase of a method that has no draft model to pace.
        trace: An empty one of as many rows, to be filled while the batch goes on and returned; a new one unless given.

    Raises:
        ConfigError: A prompt is empty or does not fit the target's context.
        ContractError: The method proposed what the contract forbids.
        UnsupportedError: The method's drafts lack what the rule decides by.
    """
    trace = trace or BatchTrace.of(len(requests.prompts))
    run = _Batch(target, method, requests, decoding, draft_pacer or nullcontext(), trace)
    return run.decode(watch or NullWatch())


class _Batch:
    """One batch in flight: its buffers, and the verbs of the loop."""

    def __init__(
        self,
        target: CachedModel,
        method: Method,
        requests: Requests,
        decoding: Decoding,
        draft_pacer: AbstractContextManager[None],
        trace: BatchTrace,
    ) -> None:
        self.target, self.method, self.decoding, self.draft_pacer = target, method, decoding, draft_pacer
        self.trace = trace
        self.caps, self.needs = method.caps(), method.needs()
        self.columns = self.caps.max_depth + 1
        self.prompt_lengths = [len(prompt) for prompt in requests.prompts]
        _check_fit(target, self.prompt_lengths, decoding.max_new_tokens)
        self.longest = max(self.prompt_lengths)
        self.host = HostReads()
        self.sampler = sampler_for(target, requests.keys, self.prompt_lengths, decoding)
        self.prompts = _pad_right(requests.prompts, target.device)
        self.capacity = self.longest + decoding.max_new_tokens + self.caps.max_nodes + 2

    @torch.inference_mode()
    def decode(self, watch: Watch) -> BatchTrace:
        """The loop. Everything else in this file is a verb of it.

        Nothing here is ever differentiated, and not even keeping the possibility open saves a small model a tenth of
        a forward.
        """
        reader = _Reader(self)
        self.target.allocate(len(self.prompt_lengths), self.capacity)
        watch.start()
        state, prefill = self.prefill()
        watch.first_token()
        self.method.begin(self.view(state), prefill)
        watch.prefilled()
        reader.push_first(state)
        while not reader.finished:
            with watch.phase("draft"), self.draft_pacer:
                tree = self.method.draft(self.view(state))
            layout, tokens = self.place(tree, state)
            with watch.phase("verify"):
                output = self.target.verify(layout, tokens, state.lengths, self.longest, self.needs.hidden)
            with watch.phase("accept"):
                decision = self.accept(tree, layout, tokens, output, state)
                before, (state, result, emission) = state, self.commit(layout, tokens, output, decision, state)
                if not layout.is_chain:
                    self.target.cache.compact(result.path, result.emitted_tokens, before.lengths)
            with watch.phase("update"):
                self.method.update(self.view(state), result)
            reader.push(layout, emission, before.active, state)
            watch.step()
        # Steps that were launched before the end was known are nobody's.
        del self.trace.syncs_per_step[self.trace.steps :]
        watch.finish(self.trace.steps)
        return self.trace

    def prefill(self) -> tuple[State, Prefill]:
        """The target over the prompts, and the first token of every row."""
        lengths = self.sampler.prompt_lengths
        everywhere = self.needs.prompt_hidden == "all"
        output = self.target.prefill(self.prompts, lengths, self.needs.hidden, all_positions=everywhere)
        root = self.sampler.draw(output.logits, lengths[:, None], Stream.TARGET)[:, 0]
        tokens = F.pad(self.prompts, (0, self.decoding.max_new_tokens + 1))
        tokens = tokens.scatter(1, lengths[:, None], root[:, None])
        budget = torch.full_like(root, self.decoding.max_new_tokens - 1)
        active = (budget > 0) & ~torch.isin(root, self.sampler.eos_ids)
        topk = self.top_nodes(output)
        state = State(root, lengths, budget, active, torch.zeros_like(root), tokens)
        return state, Prefill(self.prompts, lengths, dict(output.hidden), topk)

    def view(self, state: State) -> RowView:
        """What the method may see."""
        return RowView(
            root=state.root,
            lengths=state.lengths,
            tokens=state.tokens,
            active=state.active,
            budget=state.budget,
            sampler=self.sampler,
            longest=self.longest,
            capacity=self.capacity,
            host=self.host,
        )

    def check(self, tree: TokenTree) -> None:
        """Hold a draft to the contract: its form always, its values where reading them costs no wait.

        Raises:
            ContractError: With the method's name and what is wrong.
            UnsupportedError: The rule asks of a draft what this method does not say of its own.
        """
        fault = _form_fault(tree, self.caps, len(self.prompt_lengths))
        if fault is None and tree.tokens.device.type == "cpu":
            fault = _value_fault(tree, self.sampler.vocab_size)
        self.refuse(fault)
        rule = self.decoding.rule
        is_asked = rule.takes_points_for_draws and self.sampler.needs_draft_probs
        if is_asked and tree.draft_probs is None and tree.tokens.shape[1]:
            raise UnsupportedError(
                f"method {self.method.name} gives no draft_probs for its drafts, and the rule {rule.name} needs them"
            )

    def place(self, tree: TokenTree, state: State) -> tuple[Layout, Tensor]:
        """The draft as the target will see it, with the root in front, and checked now that its shape is known."""
        self.check(tree)
        layout = tree.layout(self.caps.max_depth + 1)  # one level more, or what is too deep would not be seen
        if isinstance(tree.parents, Tensor) and tree.tokens.device.type == "cpu":
            self.refuse(_layout_fault(layout, self.caps))
        return layout, torch.cat([state.root[:, None], tree.tokens], dim=1)

    def refuse(self, fault: str | None) -> None:
        """Raise what a draft does wrong, if it does."""
        if fault is not None:
            raise ContractError(f"method {self.method.name}: {fault}")

    def accept(self, tree: TokenTree, layout: Layout, tokens: Tensor, output: Output, state: State) -> Decision:
        """Ask the rule."""
        return self.decoding.rule.decide(
            Verification(
                layout=layout,
                tokens=tokens,
                logits=output.logits,
                positions=state.lengths[:, None] + layout.depth + 1,
                sampler=self.sampler,
                proposal=tree.proposal,
                draft_probs=tree.draft_probs,
                draft_rows=tree.draft_rows,
                max_depth=self.caps.max_depth,
                max_children=self.caps.max_children,
                steps=state.steps,
            )
        )

    def commit(
        self, layout: Layout, tokens: Tensor, output: Output, decision: Decision, state: State
    ) -> tuple[State, StepResult, Emission]:
        """Cut the accepted path at EOS and length, and move every row on."""
        column = self.target.cache.index[: self.columns]
        path, accepted, text = self.accepted_path(layout, tokens, decision)
        emitted = torch.minimum(accepted + 1, state.budget)
        active = state.active & (emitted < state.budget)
        if self.decoding.eos_ids:
            ends = torch.isin(text, self.sampler.eos_ids) & (column < emitted[:, None])
            first_end = torch.where(ends, column, self.columns).amin(1)
            active = active & (first_end >= emitted)
            emitted = torch.minimum(emitted, first_end + 1)
        emitted = emitted * state.active
        kept = column < emitted[:, None]
        trash = state.tokens.shape[1] - 1
        slots = torch.where(kept, state.lengths[:, None] + 1 + column, trash)
        all_tokens = state.tokens.scatter(1, slots, text)
        lengths = state.lengths + emitted
        moved = State(
            root=all_tokens.gather(1, lengths[:, None])[:, 0],
            lengths=lengths,
            budget=state.budget - emitted,
            active=active,
            steps=state.steps + state.active,
            tokens=all_tokens,
        )
        text = torch.where(kept, text, -1)
        rows = self.target.cache.rows
        hidden = {key: value[rows, path.clamp_min(0)] for key, value in output.hidden.items()}
        result = StepResult(path, accepted, emitted, text, state.lengths, hidden, self.top_nodes(output))
        return moved, result, Emission(text, emitted, accepted)

    def accepted_path(self, layout: Layout, tokens: Tensor, decision: Decision) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes of the path (B, A), how many were drafted (B,), and the text that it and the target make (B, A)."""
        best, own = decision.best, decision.target_token[:, None]
        if self.columns == 1:
            return best[:, None], best, own
        path = path_to(layout, best, self.columns)
        if layout.is_chain:
            accepted, text = best, F.pad(tokens[:, 1:], (0, self.columns + 1 - tokens.shape[1]))
        else:
            accepted = layout.depth.gather(1, best[:, None])[:, 0]
            text = F.pad(tokens.gather(1, path[:, 1:].clamp_min(0)), (0, 1))
        return path, accepted, text.scatter(1, accepted[:, None], own)

    def top_nodes(self, output: Output) -> Tensor | None:
        """The most likely tokens after every node, for methods that ask for them."""
        if not self.needs.node_topk:
            return None
        return output.logits[..., : self.sampler.vocab_size].topk(self.needs.node_topk, dim=-1).indices


class _Reader:
    """Brings outcomes to the host, one step late on a GPU, and writes the trace.

    Packed columns: active before, active after, accepted, emitted, depth, nodes, then the emitted tokens.
    """

    _HEAD = 6

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch
        self.finished = False
        self._lag = read_lag(batch.target.device)
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def push_first(self, state: State) -> None:
        """The prefill's token; on a GPU it too is read one step late."""
        one = torch.ones_like(state.root)
        self._enqueue(torch.stack([one, state.active, -one, one, -one, -one, state.root], dim=1))

    def push(self, layout: Layout, emission: Emission, active: Tensor, state: State) -> None:
        """One step's outcome."""
        self.batch.longest = min(self.batch.longest + self.batch.columns, self.batch.capacity - layout.num_nodes - 1)
        head = torch.stack([active, state.active, emission.accepted, emission.emitted], dim=1)
        self._enqueue(torch.cat([head, layout.tally, emission.tokens], dim=1))
        self.batch.trace.syncs_per_step.append(self.batch.host.take())

    def _enqueue(self, packed: Tensor) -> None:
        if packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._waiting.append((host, event))
        else:
            self._waiting.append((packed, None))
        while len(self._waiting) > self._lag and not self.finished:
            self._read(*self._waiting.popleft())

    def _read(self, packed: Tensor, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        rows = packed.tolist()
        for row, trace in zip(rows, self.batch.trace.rows, strict=True):
            self._record(row, trace)
        self.finished = not any(row[1] for row in rows)
        in_flight = len(self._waiting) * self.batch.columns
        longest = max(
            prompt + len(trace.output_ids) - 1
            for prompt, trace in zip(self.batch.prompt_lengths, self.batch.trace.rows, strict=True)
        )
        self.batch.longest = longest + in_flight

    def _record(self, row: list[int], trace: RowTrace) -> None:
        was_active, is_active, accepted, emitted, depth, nodes = row[: self._HEAD]
        if not was_active:
            return
        trace.output_ids += row[self._HEAD : self._HEAD + emitted]
        if accepted >= 0:
            trace.accepted_per_step.append(accepted)
            trace.drafted_depth_per_step.append(depth)
            trace.drafted_nodes_per_step.append(nodes)
            trace.emitted_per_step.append(emitted)
            trace.overshoot_tokens += accepted + 1 - emitted
        if not is_active:
            ended = trace.output_ids[-1] in self.batch.decoding.eos_ids
            trace.finish_reason = "eos" if ended else "length"


def read_lag(device: torch.device) -> int:
    """How many steps the host lets pass before it reads an outcome: on a CPU there is nothing to wait for."""
    return 1 if device.type == "cuda" else 0


def sampler_for(target: CachedModel, keys: list[int], prompt_lengths: list[int], decoding: Decoding) -> Sampler:
    """Warping and noise for rows with these keys and prompt lengths."""
    device = target.device
    return Sampler(
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_new_tokens=decoding.min_new_tokens,
        eos_ids=torch.tensor(decoding.eos_ids, dtype=torch.int64, device=device),
        vocab_size=target.vocab_size,
        seed=decoding.seed,
        keys=torch.tensor(keys, dtype=torch.int32, device=device),
        prompt_lengths=torch.tensor(prompt_lengths, device=device),
        draft_stream=Stream.TARGET if decoding.rule.name == "match" else Stream.DRAFT,
        needs_draft_probs=decoding.rule.needs_draft_probs and decoding.temperature > 0,
    )


def _pad_right(prompts: list[list[int]], device: torch.device) -> Tensor:
    longest = max(map(len, prompts))
    return torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)


def _check_fit(target: CachedModel, prompt_lengths: list[int], max_new_tokens: int) -> None:
    if min(prompt_lengths) < 1:
        raise ConfigError("a prompt has no tokens; give it at least one")
    longest = max(prompt_lengths) + max_new_tokens
    if target.max_positions is not None and longest > target.max_positions:
        raise ConfigError(
            f"a prompt of {max(prompt_lengths)} tokens and {max_new_tokens} new ones exceed the {target.max_positions} "
            f"positions of {target.name}; lower max_prompt_tokens or max_new_tokens"
        )


def _form_fault(tree: TokenTree, caps: Caps, batch: int) -> str | None:
    """What shapes and types alone say."""
    shape = tuple(tree.tokens.shape)
    if len(shape) != 2 or shape[0] != batch or tree.tokens.dtype != torch.int64:
        return f"draft tokens are {tree.tokens.dtype} of shape {shape}, expected int64 of shape ({batch}, nodes)"
    if shape[1] > caps.max_nodes:
        return f"a draft of {shape[1]} nodes, and its caps say {caps.max_nodes}"
    if tree.proposal != "point" and tree.draft_probs is None:
        return "a sampled draft needs draft_probs, the distribution it was drawn from"
    for part in ("drafted", "probe"):
        given = getattr(tree, part)
        if given is not None and tuple(given.shape) != shape:
            return f"{part} has shape {tuple(given.shape)}, and the draft tokens {shape}"
    return _shape_fault(tree, shape, caps.max_depth)


def _shape_fault(tree: TokenTree, shape: tuple[int, ...], max_depth: int) -> str | None:
    """Whether the parents fit the tokens, and how deep they can be told to be."""
    depth = 0
    if tree.parents is None:
        depth = shape[1]
    elif isinstance(tree.parents, Topology):
        depth = len(tree.parents.levels) - 1
        if len(tree.parents.parents) != shape[1]:
            return f"a topology of {len(tree.parents.parents)} nodes for {shape[1]} draft tokens"
    elif tuple(tree.parents.shape) not in {shape, shape[1:]}:
        return f"parents have shape {tuple(tree.parents.shape)}, and the draft tokens {shape}"
    if depth > max_depth:
        return f"a draft of depth {depth}, and its caps say {max_depth}"
    return None


def _value_fault(tree: TokenTree, vocab_size: int) -> str | None:
    """What the ids say."""
    tokens = tree.tokens
    if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size):
        return f"a draft token outside 0..{vocab_size - 1}"
    if isinstance(tree.parents, Tensor):
        parents = tree.parents.expand(tokens.shape)
        if bool(((parents < -2) | (parents >= torch.arange(tokens.shape[1]))).any()):
            return "a parent that is neither -1, -2 nor an earlier node"
    return None


def _layout_fault(layout: Layout, caps: Caps) -> str | None:
    """What the shape of a tree says that only its parents tell."""
    depth = int(layout.depth.max())
    if depth > caps.max_depth:
        return f"a draft of depth {depth}, and its caps say {caps.max_depth}"
    children = torch.zeros_like(layout.parent).scatter_add(1, layout.parent, layout.eligible.long())
    most = int(children.max())
    if most > caps.max_children:
        return f"a node with {most} children, and its caps say {caps.max_children}"
    return None
