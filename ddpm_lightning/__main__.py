"""Entry point of python -m ddpm_lightning, and of the console command ddpm_lightning."""

import gc
import os
import sys
from io import TextIOWrapper

from ddpm_lightning.closed_pipe import ended_by_closed_pipe
from ddpm_lightning.stored_help import stored_help


def console() -> None:
    """Run the command line; classes of one's own are found in the working directory.

    Python puts it on the path for -m alone: for a console command it is the script's folder.
    """
    sys.path.insert(0, os.getcwd())
    run()


def run() -> None:
    """Run the command line; Ctrl-C while it is imported is one line, too."""
    if (text := stored_help(sys.argv[1:])) is not None:  # importing the parsers takes seconds
        if isinstance(sys.stdout, TextIOWrapper):  # a locale may lack −, ± or ×
            sys.stdout.reconfigure(errors="replace")
        with ended_by_closed_pipe():
            print(text, end="")
        return
    gc.disable()  # it would go through all that is imported, which stays, again and again
    try:
        from ddpm_lightning.cli import main
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    gc.freeze()
    gc.enable()
    main()


if __name__ == "__main__":
    run()
