"""The kit of the checks: what they are run with, and how each ends in one line."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
CARD_BYTES = 8 * GIB


class Skipped(Exception):
    """What the check needs is not there; the text says what."""


@dataclass(frozen=True)
class Image:
    """What image/build made."""

    path: Path
    version: str
    # The folder of the sources.
    top: Path

    @property
    def out(self) -> Path:
        """The folder it lies in, with the update files."""
        return self.path.parent


@dataclass
class Report:
    """The lines, as they come."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    # Groups may run at the same time.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, name: str, act: Callable[[], str | None]) -> bool:
        """Runs one check; what it returns is told beside its ok."""
        begun = time.monotonic()
        try:
            told = act()
        except Skipped as reason:
            with self._lock:
                self.skipped += 1
                print(f"skipped  {name}: {reason}", flush=True)
            return False
        except Exception as error:  # Each check stands for itself: one that breaks is one that failed.
            text = str(error) or type(error).__name__
            with self._lock:
                self.failed += 1
                self.failures.append(name)
                print(f"FAILED   {name}: {text}", flush=True)
            return False
        took = f" ({time.monotonic() - begun:.0f} s)" if time.monotonic() - begun > 1 else ""
        with self._lock:
            self.passed += 1
            print(f"ok       {name}{took}{': ' + told if told else ''}", flush=True)
        return True

    def summary(self) -> str:
        """The last line."""
        return f"image test: {self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def expect(holds: object, otherwise: str) -> None:
    """Ends the check with that sentence unless it holds."""
    if not holds:
        raise AssertionError(otherwise)
