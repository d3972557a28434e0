"""The sample method, spoilt: it looks at a clock."""

from time import perf_counter

from specbench.decode.method import RowView, TokenTree

from .bigram import Bigram


class LooksAtTheClock(Bigram):
    """Drafts less when it was slow, so that its text would depend on the machine."""

    def draft(self, view: RowView) -> TokenTree:
        """Draft, and take the time."""
        self.started_s = perf_counter()
        return super().draft(view)
