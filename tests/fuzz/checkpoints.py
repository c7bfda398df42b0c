"""Checkpoints whose bytes or structure were altered: loaded, resumed, sampled from."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.optim.lr_scheduler import StepLR

from ddpm_lightning import EMA
from ddpm_lightning.checkpoint import DIGESTS, KEY
from ddpm_lightning.diffusion import Linear, LossSecondMoment
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.integrity import digests_of
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import UNet
from tests.fuzz import Case, Maker, command, kind
from tests.small import fit, tiny_data, tiny_module, trainer

FOREIGN = ("antigravity", "this", "idlelib.idle", "turtledemo.clock", "lib2to3.pgen2", "canary")
"""Modules that do something when they are imported, or would, and that nobody has allowed."""

Small = partial(
    UNet, channels=4, multipliers=[1], blocks=1, attention_levels=[], groups=2, mid_attention=False
)
PARTS: dict[str, Any] = {
    "net": Small,
    "schedule": Linear(40),
    "timesteps": LossSecondMoment(history=2),
    "ema": EMA(0.9),
    "optimizer": partial(torch.optim.Adam, lr=1e-3),
    "warmup_steps": 2,
    "lr_schedule": partial(StepLR, step_size=3),
}
STEPS = 3


class Uses:
    """The three ways to use a checkpoint, each held against the unaltered one's result."""

    def __init__(self, sound: Path) -> None:
        self.data = tiny_data()
        self.expected = {name: getattr(self, name)(sound) for name in ("load", "resume")}
        self.images = self._drawn(sound, sound.parent / "images")

    def load(self, path: Path) -> torch.Tensor:
        """Samples of the loaded model, with its data rebuilt, too."""
        loaded = Loaded.read(path)
        assert loaded.data is not None
        return loaded.module.sample(1, DDIM(2))

    def resume(self, path: Path) -> torch.Tensor:
        """All weights after one more step."""
        module = tiny_module(**PARTS)
        run = trainer(path.parent, STEPS + 1, callbacks=[], enable_checkpointing=False)
        run.fit(module, self.data, ckpt_path=path, weights_only=True)
        return torch.cat([weight.flatten() for weight in module.state_dict().values()])

    def sample(self, path: Path) -> bool:
        """Whether the command draws the same images."""
        return self._drawn(path, path.parent / "images") == self.images

    def equal(self, name: str, path: Path) -> bool:
        """Whether a use of a checkpoint has the result of the unaltered one."""
        if name == "sample":
            return self.sample(path)
        return torch.equal(getattr(self, name)(path), self.expected[name])

    @staticmethod
    def _drawn(path: Path, out: Path) -> bytes:
        words = "sample --n 1 --sampler DDIM --sampler.steps 2 --device cpu"
        command(*words.split(), f"--ckpt={path}", f"--out={out}")
        with Image.open(out / "000000.png") as image:  # whose text names the checkpoint
            return image.tobytes()


@kind("checkpoints")
def checkpoints(folder: Path) -> Maker:
    """Train a small model and return the maker of its altered checkpoints."""
    fit(folder, STEPS, **PARTS)
    sound = folder / "checkpoints" / "last.ckpt"
    content, uses = sound.read_bytes(), Uses(sound)

    def make(rng: random.Random, place: Path) -> Case:
        _emptied(place)
        path = place / "altered.ckpt"
        use = rng.choices(["load", "resume", "sample"], [5, 4, 1])[0]
        if rng.random() < 0.4:
            name, altered = _bytes_altered(rng, content)
            path.write_bytes(altered)
            return Case(f"{name}, then {use}", lambda: uses.equal(use, path))
        checkpoint = torch.load(io.BytesIO(content), weights_only=True)
        name, planted = _structure_altered(rng, checkpoint)
        signed = rng.choice(["as it was", "signed anew", "unsigned"])
        if isinstance(checkpoint.get(KEY), dict) and signed != "as it was":
            _signed(checkpoint, signed == "signed anew")
        torch.save(checkpoint, path)
        altered_only = signed == "as it was"
        called = f"{name}, digests {signed}, then {use}"
        return Case(called, lambda: uses.equal(use, path), not altered_only, planted)

    return make


def _emptied(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.mkdir(exist_ok=True)


def _signed(checkpoint: dict[str, Any], anew: bool) -> None:
    """Give an altered checkpoint the digests of what it now is, or none."""
    checkpoint[KEY].pop(DIGESTS, None)
    try:
        digests = digests_of(checkpoint)
    except Exception:  # nothing that can be signed
        return
    if anew:
        checkpoint[KEY][DIGESTS] = digests
    elif checkpoint[KEY].get("format") == 3:
        checkpoint[KEY]["format"] = 2


# ------------------------------------------------------------------------------- bytes


def _bytes_altered(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    how: Callable[[random.Random, bytearray], str] = rng.choice(
        [_flip, _flip, _truncate, _swap, _zero, _insert, _zip_edit, _zip_edit]
    )
    altered = bytearray(content)
    name = how(rng, altered)
    return name, bytes(altered)


def _flip(rng: random.Random, content: bytearray) -> str:
    places = [rng.randrange(len(content)) for _ in range(rng.choice([1, 1, 1, 8]))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places}"


def _truncate(rng: random.Random, content: bytearray) -> str:
    size = rng.randrange(len(content))
    del content[size:]
    return f"cut off at {size}"


def _swap(rng: random.Random, content: bytearray) -> str:
    block = rng.choice([64, 512, 4096])
    a, b = (rng.randrange(len(content) // block) * block for _ in range(2))
    content[a : a + block], content[b : b + block] = (
        content[b : b + block],
        content[a : a + block],
    )
    return f"blocks of {block} at {a} and {b} swapped"


def _zero(rng: random.Random, content: bytearray) -> str:
    size, start = rng.choice([64, 4096]), rng.randrange(len(content))
    end = min(start + size, len(content))
    content[start:end] = bytes(end - start)
    return f"zeros from {start} to {end}"


def _insert(rng: random.Random, content: bytearray) -> str:
    start = rng.choice([0, rng.randrange(len(content)), len(content)])
    content[start:start] = rng.randbytes(rng.choice([1, 100, 4096]))
    return f"bytes inserted at {start}"


def _zip_edit(rng: random.Random, content: bytearray) -> str:
    """Write the zip file anew with right checksums, one part edited."""
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    k = rng.randrange(len(parts))
    how = rng.choice(["byte", "drop", "duplicate", "swap", "shorten", "compress", "pickle"])
    name, data = parts[k]
    if how == "byte" and data:
        place = rng.randrange(len(data))
        parts[k] = name, data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    elif how == "drop":
        del parts[k]
    elif how == "duplicate":
        parts.append((name, data[::-1]))
    elif how == "swap":
        j = rng.randrange(len(parts))
        parts[k], parts[j] = (name, parts[j][1]), (parts[j][0], data)
    elif how == "shorten":
        parts[k] = name, data[: len(data) // 2]
    elif how == "pickle":
        k = next(i for i, part in enumerate(parts) if part[0].endswith("data.pkl"))
        place = rng.randrange(len(parts[k][1]))
        edited = bytearray(parts[k][1])
        edited[place] = rng.randrange(256)
        parts[k] = parts[k][0], bytes(edited)
    stored = zipfile.ZIP_DEFLATED if how == "compress" else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", stored) as archive:
        for part in parts:
            archive.writestr(*part)
    content[:] = buffer.getvalue()
    return f"zip: {how} of {name}"


# --------------------------------------------------------------------------- structure


def _nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every node but the root, by its keys."""
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    for key, one in pairs:
        yield (*place, key), one
        yield from _nodes(one, (*place, key))


def _endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _bomb() -> list[Any]:
    found: list[Any] = [0]
    for _ in range(40):
        found = [found, found]
    return found


def _others(rng: random.Random, value: Any) -> Any:
    """Something else in place of a value."""
    pool: list[Any] = [
        *(
            None,
            True,
            0,
            -1,
            1,
            10**12,
            2147483648,
            10**9,
            10**30,
            1.5,
            float("nan"),
            float("inf"),
        ),
        *("", "x", "ddpm_lightning.networks.DiT", b"x", [], {}, (), [1, 2], {"a": 1}),
        *(torch.zeros(3), torch.zeros(1).expand(10**12), torch.zeros(2, device="meta")),
        *(_endless(), _bomb(), {"class_path": "this.Zen", "init_args": {}}),
        {"class_path": "ddpm_lightning.data.Digits", "init_args": {}},
    ]
    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        pool = [value.double(), value.long(), value.flatten()[:1], value[None], value + 1]
    elif type(value) in (int, float) and rng.random() < 0.5:
        pool = [str(value), float(value), -value, value + 1, [value], value * 2**20]
    return rng.choice(pool)


def _structure_altered(
    rng: random.Random, checkpoint: dict[str, Any]
) -> tuple[str, frozenset[str]]:
    """Alter one node; return what was done, and the modules that it names now."""
    tops = rng.choice([[KEY], ["hyper_parameters"], ["loops"], ["optimizer_states"], None])
    nodes = [
        (place, value)
        for place, value in _nodes(checkpoint)
        if (tops is None or place[0] in tops) and DIGESTS not in place[:2]
    ]
    if tops is None and rng.random() < 0.5:  # the entries themselves are few among their parts
        nodes = [node for node in nodes if len(node[0]) <= 2]
    place, value = rng.choice(nodes)
    if rng.random() < 0.15:
        module = rng.choice(FOREIGN)
        described = [node for node in _nodes(checkpoint) if node[0][-1] == "class_path"]
        place, value = rng.choice(described)
        path: Any = f"{module}.Anything"
        if rng.random() < 0.3 and len(place) > 2:  # a string where an object is described
            place = place[:-1]
        _set(checkpoint, place, path)
        return f"{place} names {path}", frozenset({module, module.partition(".")[0]})
    how = rng.choice(["delete", "replace", "replace", "rename"])
    if how == "replace" or not isinstance(_get(checkpoint, place[:-1]), dict):
        other = _others(rng, value)
        _set(checkpoint, place, other)
        shown = (
            f"{type(other).__name__}" if isinstance(other, list | dict | torch.Tensor) else other
        )
        return f"{place} becomes {shown!r:.50}", frozenset({"this"})
    holder = _get(checkpoint, place[:-1])
    held = holder.pop(place[-1])
    if how == "rename":
        holder[f"{place[-1]}_"] = held
    return f"{place} {how}d", frozenset()


def _get(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _set(checkpoint: Any, place: tuple[Any, ...], value: Any) -> None:
    holder = _get(checkpoint, place[:-1])
    if isinstance(holder, tuple):  # in place of the tuple, one with another entry
        changed = list(holder)
        changed[place[-1]] = value
        _set(checkpoint, place[:-1], tuple(changed))
    else:
        holder[place[-1]] = value
