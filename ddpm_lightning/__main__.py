"""Entry point of python -m ddpm_lightning."""

import sys

if __name__ == "__main__":
    try:
        from ddpm_lightning.cli import main
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    main()
