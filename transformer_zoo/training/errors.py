"""Errors that a user can mend: commands print their message without a traceback and exit with status 2."""


class UserError(RuntimeError):
    """The message says what is wrong, where, and what to do."""
