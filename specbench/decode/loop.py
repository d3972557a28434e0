"""The one loop: prefill, then draft, verify, accept, update, until every row has met EOS or its length.

Nothing in a step asks the device a question. On a GPU the host reads the outcome of step k after it has launched step
k + 1; the one step too many that this costs at the end changes no row and is neither counted nor timed.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.decode.method import Caps, Method, Prefill, RowView
from specbench.decode.sampling import Sampler, Stream
from specbench.decode.step import Decoding, State, Step
from specbench.decode.target import CachedModel
from specbench.decode.trace import BatchTrace, NullWatch, RowTrace, Watch
from specbench.errors import ConfigError


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


def generate(
    target: CachedModel,
    method: Method,
    requests: Requests,
    decoding: Decoding,
    watch: Watch | None = None,
    draft_pacer: AbstractContextManager[None] | None = None,
    trace: BatchTrace | None = None,
    step: Step | None = None,
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
        step: Of this very target, method and way of decoding, made once for many batches where its phases are compiled
            or captured; one that runs them as they are unless given.

    Raises:
        ConfigError: A prompt is empty or does not fit the target's context.
        ContractError: The method proposed what the contract forbids.
        UnsupportedError: The method's drafts lack what the rule decides by.
    """
    trace = trace or BatchTrace.of(len(requests.prompts))
    step = step or Step(target, method, decoding)
    return _Batch(step, requests, draft_pacer or nullcontext(), trace).decode(watch or NullWatch())


def slots_for(caps: Caps, text_limit: int) -> int:
    """Slots of a row whose text grows to ``text_limit`` tokens: the nodes of a step stand behind it, and trash."""
    return text_limit + caps.max_nodes + 2


class _Batch:
    """One batch in flight: its buffers, and the verbs of the loop."""

    def __init__(
        self,
        step: Step,
        requests: Requests,
        draft_pacer: AbstractContextManager[None],
        trace: BatchTrace,
    ) -> None:
        self.step, self.draft_pacer, self.trace = step, draft_pacer, trace
        self.target, self.method, self.decoding = step.target, step.method, step.decoding
        decoding = step.decoding
        self.prompt_lengths = [len(prompt) for prompt in requests.prompts]
        _check_fit(self.target, self.prompt_lengths, decoding.max_new_tokens)
        self.longest = max(self.prompt_lengths)
        self.sampler = sampler_for(self.target, requests.keys, self.prompt_lengths, decoding)
        self.prompts = _pad_right(requests.prompts, self.target.device)
        self.text_limit = self.longest + decoding.max_new_tokens
        self.slots = slots_for(step.caps, self.text_limit)

    @torch.inference_mode()
    def decode(self, watch: Watch) -> BatchTrace:
        """The loop. Everything else in this file is a verb of it.

        Nothing here is ever differentiated, and not even keeping the possibility open saves a small model a tenth of
        a forward.
        """
        step = self.step
        reader = _Reader(self)
        self.target.allocate(len(self.prompt_lengths), self.slots)
        self.sampler = step.adopt(self.sampler)
        watch.start()
        state, prefill = self.prefill()
        watch.first_token()
        step.begin(self.view(state), prefill)
        watch.prefilled()
        reader.push_first(state)
        while not reader.finished:
            view = self.view(state)
            with watch.phase("draft"), self.draft_pacer:
                tree = step.draft(view)
            step.check_draft(tree, len(self.prompt_lengths), self.sampler)
            with watch.phase("verify"):
                verified = step.verify(tree, state.root, state.lengths, view.longest)
            step.check_layout(tree, verified.layout)
            with watch.phase("accept"):
                state, result, report = step.accept(tree, verified, state, self.sampler)
            with watch.phase("update"):
                step.update(self.view(state), result)
            reader.push(report, verified.layout.num_nodes)
            watch.step()
        # Steps that were launched before the end was known are nobody's.
        del self.trace.syncs_per_step[self.trace.steps :]
        self.trace.captured_phases, self.trace.compiled_phases = step.captured_phases, step.compiled_phases
        watch.finish(self.trace.steps)
        return self.trace

    def prefill(self) -> tuple[State, Prefill]:
        """The target over the prompts, and the first token of every row."""
        needs, lengths = self.step.needs, self.sampler.prompt_lengths
        output = self.target.prefill(self.prompts, lengths, needs.hidden, all_positions=needs.prompt_hidden == "all")
        root = self.sampler.draw(output.logits, lengths[:, None], Stream.TARGET)[:, 0]
        # As wide as the cache, which stays when a shorter batch comes: what is captured finds the shape that it knows.
        tokens = F.pad(self.prompts, (0, self.target.cache.slots - self.prompts.shape[1]))
        tokens = tokens.scatter(1, lengths[:, None], root[:, None])
        budget = torch.full_like(root, self.decoding.max_new_tokens - 1)
        active = (budget > 0) & ~self.sampler.ends(root)
        topk = self.step.top_nodes(output, self.sampler)
        state = self.step.adopt(State(root, lengths, budget, active, torch.zeros_like(root), tokens))
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
            longest=self.step.bound(self.longest),
            capacity=self.slots,
            text_limit=self.text_limit,
            host=self.step.host,
        )


class _Reader:
    """Brings outcomes to the host, one step late on a GPU, and writes the trace.

    The columns are those of ``Accepted.report``.
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

    def push(self, report: Tensor, num_nodes: int) -> None:
        """One step's outcome, which had so many nodes."""
        batch = self.batch
        batch.longest = min(batch.longest + batch.step.columns, batch.slots - num_nodes - 1)
        self._enqueue(report)
        batch.trace.syncs_per_step.append(batch.step.host.take())

    def _enqueue(self, packed: Tensor) -> None:
        if packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(packed.device))  # the current device need not be this one
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
        in_flight = len(self._waiting) * self.batch.step.columns
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
