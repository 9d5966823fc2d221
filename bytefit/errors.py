"""The ways in which bytefit says no, and the one in which it is stopped.

Everything else that escapes is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Something the user can mend. Shown as one line on stderr; the exit code is 2.

    The message names the value that is wrong and the fix.
    """


class CheckFailed(Exception):
    """A check that was asked for did not hold (a proof, an audit). The exit code is 1."""


class Interrupted(Exception):
    """The user (or the system) asked to stop; the checkpoint is saved. The exit code is 130."""
