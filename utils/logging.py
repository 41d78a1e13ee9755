"""Messages to the person at the terminal, progress, and how the scripts end."""

from __future__ import annotations

import sys
from typing import Callable, Iterable, Iterator, Sequence, TextIO

from utils.errors import UserError

_said: set[str] = set()


def note(message: str) -> None:
    """Print one line of information."""
    _print(message, sys.stdout)


def warning(message: str) -> None:
    """Print one line that says what is not as expected, on the error stream."""
    _print(f"warning: {message}", sys.stderr)


def _print(message: str, stream: TextIO) -> None:
    """Print a line; a progress bar that is on the screen moves below it."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(message, file=stream)
        stream.flush()
    else:
        print(message, file=stream, flush=True)


def warn_once(message: str) -> None:
    """Print a warning unless this process has printed the same one before."""
    if message not in _said:
        _said.add(message)
        warning(message)


def progress(items: Iterable, description: str, total: int | None = None, log_type: str = "progressbar") -> Iterator:
    """Iterate over items and show how far it is.

    log_type: "progressbar", "traditional" (a line per tenth of the way) or "none"."""
    if log_type == "none":
        yield from items
        return
    if log_type == "progressbar":
        from tqdm import tqdm

        yield from tqdm(items, desc=description, total=total, dynamic_ncols=True)
        return
    if total is None:
        total = len(items)
    step = max(1, total // 10)
    for number, item in enumerate(items, start=1):
        yield item
        if number % step == 0 or number == total:
            note(f"{description}: {number}/{total}")


def run_script(function: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a script's main function and return the process's exit status: what the function returns, None being 0.

    What a user can put right (UserError, a file that cannot be read or written) is one line and status 1, as is a
    function's own answer that something was left out; Ctrl-C is status 130. Anything else is a defect of the program
    and keeps its traceback. All of it: docs/reliability.md."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be no text in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        return function(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except OSError as error:
        if error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr, flush=True)
        return 130
    return 1
