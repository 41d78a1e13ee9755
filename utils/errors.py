"""The one kind of error that is addressed to the user rather than to a programmer."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line saying what is wrong, where, and what to do about it. Scripts print it as
    ``error: MESSAGE`` and exit with status 1, without a traceback.
    """
