"""Ctrl-C and SIGTERM: the first one unwinds a command, and a second one ends it at once."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

# Seconds until an interruption that Python has dropped is raised again.
_AGAIN = 0.05


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Have the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and a second one end the process.

    Python drops what is raised in a finalizer, in the middle of which a signal may come; it is then
    raised again.

    Yields:
        A list that holds the number of the signal, once it has come.
    """
    received: list[int] = []
    timers: list[threading.Timer] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interrupt_again(number, frame)

    def interrupt_again(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def dropped(what: Any) -> None:
        if not received or not issubclass(what.exc_type, KeyboardInterrupt):
            hook(what)
            return
        signal.signal(signal.SIGINT, interrupt_again)
        main = threading.main_thread().ident
        timer = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as behind `nohup`, or in the background of a script
            signal.signal(number, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
