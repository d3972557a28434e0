"""Every error that specbench raises on purpose, and the exit code that it ends a command with.

SpecbenchError                 1  any other fault that a user can mend
├── ConfigError                2  nothing ran: the experiment, an option or a name is wrong
│   └── UnknownNameError       2  a method, model, prompt source or recipe that nobody knows
├── UnsupportedError           1  this combination cannot run, and the message says why
│   └── ModelRefusedError      1  the model failed its self-test, or has no cache that the core can use
├── ContractError              3  a method broke the contract of specbench.decode.method
├── NotLosslessError           4  a method that claims to be lossless changed the text
├── DeviceFaultError           1  the GPU has faulted, and this process can use it no more
├── ResultsError               1  a results folder cannot be read, or its rows must not be compared
└── TrainingError              1  a training run cannot start or go on
"""

from collections.abc import Iterable


class SpecbenchError(Exception):
    """Base of every error here; commands print its message on one line and exit with ``exit_code``."""

    exit_code = 1


class ConfigError(SpecbenchError):
    """The experiment file, an option or a command line is wrong; nothing was run."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that is in no table."""


class UnsupportedError(SpecbenchError):
    """A combination that cannot run here, with the reason."""


class ModelRefusedError(UnsupportedError):
    """A model that the decode core must not run, because its logits would be wrong."""


class ContractError(SpecbenchError):
    """A method returned something that the contract forbids."""

    exit_code = 3


class NotLosslessError(SpecbenchError):
    """Text that differs from the target's own where it must not."""

    exit_code = 4


class DeviceFaultError(SpecbenchError):
    """A GPU that has faulted: whatever its process asks of it from now on fails."""


class ResultsError(SpecbenchError):
    """A results folder that cannot be read, or rows that must not be compared."""


class TrainingError(SpecbenchError):
    """A training run that cannot start or go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'?`` for the nearest name, ``Known: a, b.`` where none is near, else nothing."""
    from difflib import get_close_matches  # needed only once something is wrong

    names = list(known)
    nearest = get_close_matches(name, names, n=1)
    if nearest:
        return f"Did you mean {nearest[0]!r}?"
    return f"Known: {', '.join(names)}." if names else ""


def first_line(error: BaseException) -> str:
    """What a library's error says, as far as it fits on one line; its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
