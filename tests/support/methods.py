"""Methods that only tests want: they draft what a test needs to see the core react to."""

from collections.abc import Callable

import torch

from specbench.decode.method import Caps, Hidden, Method, Needs, Options, Prefill, RowView, StepResult, TokenTree

from . import trees


class Scripted(Method):
    """Knows the text that the target will write, and hides it in random, ragged, padded trees with probes.

    Every tree has a right path of random length; all other tokens are random. Probes may carry right tokens.
    """

    name = "scripted"

    def __init__(
        self,
        texts: list[list[int]],
        vocab: int,
        *,
        seed: int = 0,
        nodes: int = 9,
        depth: int = 4,
        pad: float = 0.2,
        probes: float = 0.0,
        honesty: float = 0.8,
    ) -> None:
        super().__init__(Options())
        self.texts, self.vocab, self.nodes, self.depth, self.pad = texts, vocab, nodes, depth, pad
        self.probes, self.honesty = probes, honesty
        self.generator = torch.Generator().manual_seed(seed)
        self.probes_with_the_right_token = 0

    def caps(self) -> Caps:
        return Caps(max_nodes=self.nodes, max_depth=self.depth, max_children=self.nodes)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        self.prompt_lengths = prefill.lengths.tolist()

    def draft(self, view: RowView) -> TokenTree:
        batch = len(self.texts)
        nodes = int(torch.randint(1, self.nodes + 1, (), generator=self.generator))
        parents = trees.random_parents(batch, nodes, self.generator, max_depth=self.depth, pad=self.pad)
        tokens = torch.randint(0, self.vocab, (batch, nodes), generator=self.generator)
        probe = torch.rand(batch, nodes, generator=self.generator) < self.probes
        honest = torch.rand(batch, nodes, generator=self.generator) < self.honesty
        for row, text in enumerate(self.texts):
            written = int(view.lengths[row]) - self.prompt_lengths[row] + 1
            on_path, above = True, -1
            for node in range(nodes):
                way = trees.path(parents[row], node)
                if way is None or not honest[row, node]:
                    continue
                ahead = written + len(way) - 2
                on_path = parents[row][node] == above or bool(probe[row, node])
                if on_path and ahead < len(text):
                    tokens[row, node] = text[ahead]
                    self.probes_with_the_right_token += bool(probe[row, node])
                    above = node
        return TokenTree(tokens, torch.tensor(parents), probe=probe if self.probes else None)


class Given(Method):
    """Drafts whatever a function returns."""

    name = "given"

    def __init__(self, make: Callable[[RowView], TokenTree], caps: Caps) -> None:
        super().__init__(Options())
        self.make, self._caps = make, caps

    def caps(self) -> Caps:
        return self._caps

    def draft(self, view: RowView) -> TokenTree:
        return self.make(view)


class Listening(Scripted):
    """Asks for everything the core can hand out, and keeps it."""

    name = "listening"
    WANTED = (Hidden("post_norm"), Hidden("layer_input", 1))

    def needs(self) -> Needs:
        return Needs(hidden=self.WANTED, prompt_hidden="all", node_topk=3)

    def begin(self, view: RowView, prefill: Prefill) -> None:
        super().begin(view, prefill)
        self.prefill, self.results, self.drafts = prefill, [], []

    def draft(self, view: RowView) -> TokenTree:
        tree = super().draft(view)
        self.drafts.append((tree, view.root.clone(), view.tokens.clone(), view.lengths.clone()))
        return tree

    def update(self, view: RowView, result: StepResult) -> None:
        self.results.append(result)
