"""Token ids to text while they come in: nothing is shown that later tokens could still change."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CONTROL_PICTURES = 0x2400
# What a model writes must not steer the terminal: of all control characters, line breaks and tabs pass.
_PICTURES = {
    **{code: _CONTROL_PICTURES + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), ord("\N{SYMBOL FOR SUBSTITUTE FORM TWO}")),
}


class TextStream:
    """Decodes the tokens of one text piece by piece.

    A character whose bytes are spread over tokens waits for the last of them; an end that never becomes one is not
    shown. Tokens are decoded behind those of the piece before, since some tokenizers let them share a space.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._open: list[int] = []
        self._shown = 0  # characters of the open tokens

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add, as far as it is certain."""
        self._open += tokens
        context = self._decode(self._before)
        text = self._decode([*self._before, *self._open])
        whole = text.rstrip(_INCOMPLETE)
        piece = whole[len(context) + self._shown :]
        self._shown += len(piece)
        if whole == text:
            self._before, self._open, self._shown = self._open, [], 0
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def printable(text: str) -> str:
    """The text with pictures in place of control characters."""
    return text.translate(_PICTURES)
