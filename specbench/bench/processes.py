"""Work in a fresh process, with its progress shown in this one.

A process of its own has its own memory layout, hash seed and warm-up: what differs from one run to the next differs
between processes. The child tells what it does by calls on its reporter, which are played back here.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from specbench.errors import SpecbenchError

if TYPE_CHECKING:
    from specbench.bench.progress import Reporter

_SECONDS_TO_END = 10.0


class _Ended:
    """The last message of a child: how its work ended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class _Relay:
    """A reporter that sends what it is told to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._connection.send((name, arguments))


def run_apart(work: Callable[[Any], None], progress: "Reporter") -> None:
    """Do some work in a fresh process and wait for its end.

    Args:
        work: Takes a reporter; it must be picklable, as a function of a module or a `functools.partial` of one.
        progress: Told all that the work tells its reporter.

    Raises:
        SpecbenchError: The work raised it, or its process died.
        KeyboardInterrupt: It was interrupted.
    """
    spawning = multiprocessing.get_context("spawn")
    receiving, sending = spawning.Pipe(duplex=False)
    child = spawning.Process(target=_work_and_tell, args=(work, sending))
    child.start()
    sending.close()  # so that the child's death ends what we read
    try:
        error = _played_back(receiving, progress)
    except EOFError:
        child.join()
        raise SpecbenchError(_death(child.exitcode)) from None
    finally:
        child.join(_SECONDS_TO_END)
        if child.is_alive():
            child.kill()
            child.join()
    if error is not None:
        raise error


def _played_back(receiving: Connection, progress: "Reporter") -> BaseException | None:
    while not isinstance(message := receiving.recv(), _Ended):
        name, arguments = message
        getattr(progress, name)(*arguments)
    return message.error


def _death(exit_code: int | None) -> str:
    how = f"was killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"ended with {exit_code}"
    return f"a process of the run {how}; finished blocks are kept, and the same command goes on from there"


def _work_and_tell(work: Callable[[Any], None], connection: Connection) -> None:
    _die_with_parent()
    try:
        work(_Relay(connection))
    except (SpecbenchError, KeyboardInterrupt) as error:
        connection.send(_Ended(error))
    else:
        connection.send(_Ended())


def _die_with_parent() -> None:
    """A child that outlived its parent would measure beside the next run, and neither could be believed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
