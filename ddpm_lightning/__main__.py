"""python -m ddpm_lightning …"""

from ddpm_lightning.cli import main

if __name__ == "__main__":
    main()
