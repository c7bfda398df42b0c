"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Bad input: a file, a flag, a checkpoint or a shape.

    The message says what is wrong, where, and the fix. The command line prints it as one line,
    without a stack trace.
    """
