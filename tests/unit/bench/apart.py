"""Work for a process of its own; it starts in no time, since nothing heavy is imported here."""

import os
import signal

from specbench.errors import ConfigError


def talk_and_fail(here, progress):
    progress.say("hello")
    progress.block_done()
    assert os.getpid() != here
    raise ConfigError("a fault of the user")


def die(progress):
    progress.say("hello")
    os.kill(os.getpid(), signal.SIGKILL)
