"""SIGINT, SIGTERM and SIGHUP during a run: the first signal stops it after the step, the second one immediately."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from cpt_deploy.errors import RunInterruptedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Catches the signals inside its context; in a thread other than the main one it does nothing.

    Attributes:
        signal_number: The signal that was received, or `None`.
    """

    signal_number: int | None

    def __init__(self) -> None:
        self.signal_number = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self.signal_number is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # A run that was started by nohup goes on when its terminal is gone.
            kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._previous = {number: signal.signal(number, self._receive) for number in {*_SIGNALS} - kept}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise RunInterruptedError(
                "Stopped at once by a second signal; steps since the last checkpoint are lost",
                signal_number=number,
                hint="resume the run to continue from its last checkpoint",
            )
        self.signal_number = number
