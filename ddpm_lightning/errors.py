"""The exception for mistakes that a user can correct."""


class InputError(ValueError):
    """Bad input: a file, a flag, a checkpoint or a shape.

    The message names the mistake, its place and the fix. The command line prints it on one line,
    without a traceback.
    """
