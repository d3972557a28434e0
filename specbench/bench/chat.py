"""A conversation with a method in the terminal: each step's tokens in one colour, and below what they cost."""

import io
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from specbench.analysis.acceptance import block_efficiency
from specbench.analysis.throughput import decode_tokens_per_s
from specbench.bench.arms import Measured
from specbench.bench.cells import ReadyCell
from specbench.bench.conversations import answer_of
from specbench.bench.prompt_encoding import Answer, Encoder
from specbench.bench.prompt_formats import Content
from specbench.bench.prompts import Prompt, PromptSet, key_of
from specbench.bench.rows import decoded
from specbench.bench.speaker import Speaker, ready_setting, speaker_for, told_options
from specbench.bench.text_stream import TextStream, printable
from specbench.bench.timing import frozen_objects
from specbench.config import PromptSettings
from specbench.errors import ConfigError
from specbench.grid import Arm, Plan
from specbench.models.source import Source
from specbench.models.zoo import ZOO

TYPED = "typed.txt"
"""The prompt source of a plan whose prompts are typed; no such file is read."""

COLOURS = ("cyan", "magenta", "green", "yellow")
"""Of the steps, in turn; the prefill's token has none."""

_HELP = "/reset forgets what was said, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
_GREETING = "hello"
_NEXT_TURN = "\n{prompt}"
_COMMAND = re.compile(r"/\w+")


def begin(plan: Plan, zoo: Path = ZOO) -> "Conversation":
    """Load what a conversation needs.

    Args:
        plan: Of one setting, whose prompt source is ``TYPED``.
        zoo: Where the embedded family lies.

    Raises:
        SpecbenchError: The setting cannot run.
    """
    cell, arm = ready_setting(plan, zoo, _nothing_to_read)
    conversation = Conversation(cell, arm, speaker_for(cell, arm, zoo))
    conversation.warm_up()
    return conversation


def _nothing_to_read(*_: Any, **__: Any) -> PromptSet:
    return PromptSet([], "", "typed")


class Conversation:
    """What was said so far, and the method that says more.

    Without a chat template, and without ``prompts.template``, the text is just continued.
    """

    def __init__(self, cell: ReadyCell, arm: Arm, speaker: Speaker) -> None:
        self.source = cell.target
        self._cell, self._arm, self._speaker = cell, arm, speaker
        settings = _framed(cell.cell.prompts, cell.target)
        self._encoder = Encoder(settings, cell.target, cell.cell.decode.chat_template_kwargs)
        self._count = 0
        self.reset()

    @property
    def title(self) -> str:
        """Who speaks, and how, in words."""
        options = ", ".join(f"{name} {value}" for name, value in told_options(self._arm).items())
        where, rule = self._cell.where, self._cell.decoding.rule
        return (
            f"{self._cell.cell.target.name} in {where.dtype_name} on {where.device}, "
            f"{self._arm.method}{f' ({options})' if options else ''}, temperature "
            f"{self._cell.decoding.temperature:g}, rule {rule.name}{'' if rule.lossless else ' (lossy)'}; "
            f"around each prompt: {self._encoder.frame}"
        )

    def reset(self) -> None:
        """Forget all that was said."""
        self._turns: tuple[str, ...] = ()
        self._answers: list[Answer] = []

    def warm_up(self) -> None:
        """Answer something short that nobody hears."""
        self._speaker.get_ready([self._prompt(_GREETING)])

    def say(self, text: str, hear: "Listener") -> Measured | None:
        """One turn, streamed; None where the listener had enough before the answer was whole.

        Raises:
            ConfigError: The prompt does not fit behind what was said, or cannot be framed.
        """
        prompt = self._prompt(text)
        room = self._room(prompt)
        self._count += 1
        try:
            measured = self._speaker.answer([prompt], hear, room)
        except KeyboardInterrupt:
            measured = None
        if hear.tokens:
            self._turns += (text,)
            self._answers.append(answer_of(hear.tokens, self.source))
        return measured

    def _prompt(self, text: str) -> Prompt:
        turns = (*self._turns, text)
        ids = self._encoder.ids(Content(turns), self._answers)
        name = f"typed/{self._count}"  # so that chance is another each time, and the same in the same session again
        return Prompt(name, key_of(name), None, ids, text, len(turns))

    def _room(self, prompt: Prompt) -> int | None:
        """Tokens that fit behind a prompt; None where the target sets no limit."""
        most, length = self.source.max_positions, len(prompt.ids)
        if most is not None and length >= most:
            raise ConfigError(
                f"{length:,} tokens fill the {most:,} positions of {self.source.name}; /reset forgets what was said"
            )
        return None if most is None else most - length


def _framed(settings: PromptSettings, source: Source) -> PromptSettings:
    has_frame = settings.template is not None or settings.next_template is not None
    chats = source.tokenizer.chat_template is not None if settings.chat_template is None else settings.chat_template
    return settings if has_frame or chats else settings.model_copy(update={"next_template": _NEXT_TURN})


class Listener:
    """Shows the tokens of each step in the step's colour, as soon as their text is certain."""

    def __init__(self, console: Console, source: Source) -> None:
        self._console, self._stream = console, TextStream(source.tokenizer)
        self.tokens: list[int] = []
        self.steps = 0
        self._at_line_start = True

    def __call__(self, tokens: list[int], step: int) -> None:
        """One step; 0 is the prefill."""
        self.tokens += tokens
        self.steps = step
        if piece := printable(self._stream.push(tokens)):
            colour = Style(color=COLOURS[(step - 1) % len(COLOURS)]) if step else None
            # A segment goes out as it is: text would have its tabs expanded, and be wrapped.
            self._console.print(Segments([Segment(piece, colour)]), end="", soft_wrap=True)
            self._at_line_start = piece.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, unless one has begun."""
        if not self._at_line_start:
            self._console.out()


class Terminal:
    """Reads prompts and commands from the standard input, and shows answers; prompts may come through a pipe."""

    def __init__(self, console: Console, conversation: Conversation) -> None:
        self._console, self._conversation = console, conversation
        self._is_watched = sys.stdin.isatty()

    def run(self) -> None:
        """Converse until the input ends.

        Raises:
            SpecbenchError: A method broke the contract, or memory ran out; through a pipe, also a prompt without room.
        """
        if self._is_watched:
            with suppress(ImportError):
                import readline  # noqa: F401  (to import it is to switch line editing on)
            self._note(f"{self._conversation.title}\n{_HELP}")
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        with frozen_objects():
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Read a line and do as it says; whether there is more to come."""
        try:
            line = input("> " if self._is_watched else "")
            if line.strip() == "/exit":
                return False
            self._obey_or_answer(line)
        except EOFError:
            self._end_line()
            return False
        except KeyboardInterrupt:
            if not self._is_watched:
                raise
            self._end_line()
        return True

    def _end_line(self) -> None:
        if self._is_watched:
            self._console.out()

    def _obey_or_answer(self, line: str) -> None:
        command = line.strip()
        if command == "/reset":
            self._conversation.reset()
            self._note("forgotten")
        elif _COMMAND.fullmatch(command):
            self._note(f"unknown command {command}; there are /reset and /exit")
        elif command:
            self._answer(line)

    def _answer(self, text: str) -> None:
        hear = Listener(self._console, self._conversation.source)
        try:
            measured = self._conversation.say(text, hear)
        except ConfigError as error:
            if not self._is_watched:
                raise
            self._note(f"error: {error}")
            return
        hear.end_line()
        if measured is not None:
            self._note(_cost(measured))
        elif self._is_watched:
            self._note(f"stopped: {_counted(hear.tokens, hear.steps)}")
        else:
            raise KeyboardInterrupt

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def _counted(tokens: list[int], steps: int) -> str:
    return f"{len(tokens):,} tokens in {steps:,} steps"


def _cost(measured: Measured) -> str:
    """Tokens, steps, and the rates that have a meaning for them: an answer of one token takes no step."""
    row = measured.trace.rows[0]
    frame = pd.DataFrame([{"status": "ok", **decoded(measured, row)}])
    per_step, rate = block_efficiency(frame), decode_tokens_per_s(frame)
    parts = [
        _counted(row.output_ids, row.steps),
        f"{per_step:.2f} tokens per step" if per_step else "",
        f"{rate:,.1f} tokens/s (decode)" if rate else "",
        f"first token after {measured.timing.ttft_s:.3f} s",
    ]
    return ", ".join(filter(None, parts))
