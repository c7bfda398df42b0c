"""python -m ddpm_lightning …"""

import sys

if __name__ == "__main__":
    try:
        from ddpm_lightning.cli import main
    except KeyboardInterrupt:
        sys.exit(130)  # importing takes seconds
    main()
