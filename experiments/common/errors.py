"""How a run ends early without a traceback."""


class UserError(Exception):
    """A bad flag, a missing file, a corrupt checkpoint, NaN in the data.

    Its text is one clear line that says what to do; the process exits with code 2.
    """


class Interrupted(Exception):
    """SIGTERM or Ctrl-C, after the state was saved; the process exits with code 130."""
