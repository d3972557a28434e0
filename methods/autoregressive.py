"""The baseline: no draft, so every step yields the target's next token and nothing else."""

from specbench.decode.method import Caps, Method, RowView, TokenTree


class Autoregressive(Method):
    """Decode one token a step, through the same loop and the same cache as every other method."""

    name = "autoregressive"

    def caps(self) -> Caps:
        """No nodes at all."""
        return Caps(max_nodes=0, max_depth=0, max_children=0)

    def carries(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def draft(self, view: RowView) -> TokenTree:
        """Propose nothing."""
        return TokenTree.empty(view)
