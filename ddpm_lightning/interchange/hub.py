"""Models of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ddpm_lightning.errors import InputError

FILES = ["*.json", "*.safetensors", "*.bin"]


def downloaded(name: str) -> Path:
    """Download a model of the hub, OWNER/NAME, into the hub's own cache; return its folder.

    Raises InputError: huggingface_hub is not installed, or the download fails.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{name} is no folder here, and a name on the hub needs huggingface_hub: "
            "pip install 'ddpm_lightning[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # of the hub's client, of the network and of the disk
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"there is no folder {name}, and it could not be downloaded from the hub ({reason}); "
            f"where there is a network: hf download {name} --local-dir DIR, then --from DIR"
        ) from error
