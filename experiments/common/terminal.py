"""What a person sees: lines, warnings and progress, from process 0 alone."""

import sys

from tqdm import tqdm

_quiet = False


def silence() -> None:
    """Make this process say nothing; for all processes but the first."""
    global _quiet
    _quiet = True


def say(line: str) -> None:
    """Print a line to the terminal.

    Args:
      line: The text.
    """
    if not _quiet:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def warn(line: str) -> None:
    """Print a warning to standard error.

    Args:
      line: The text, without the word.
    """
    if not _quiet:
        tqdm.write(f"warning: {line}", file=sys.stderr)


def progress(
    description: str, total: int, *, done: int = 0, unit: str = "step", delay: float = 0.0
) -> tqdm:
    """A progress bar with its rate and the time left; a line every ten seconds in a log file.

    Args:
      description: What is being done.
      total: Units in all.
      done: Units done earlier (by the run that is resumed).
      unit: Name of a unit.
      delay: Seconds before it appears, for what is mostly quick.

    Returns:
      The bar, to be used as a context manager.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        ascii=not interactive,
        mininterval=0.2 if interactive else 10.0,
        disable=_quiet,
        delay=delay,
        file=sys.stderr,
    )
