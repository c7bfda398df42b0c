"""Base classes of samplers: settings, the loop from x_T down to x_0, and the trajectory."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self, override

from ddpm_lightning.batch import Condition
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoises, evaluation_mode
from ddpm_lightning.diffusion.levels import Schedule, Time
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.spacings import Levels, Spacing, UniformSpacing
from ddpm_lightning.diffusion.self_conditioning import followed
from ddpm_lightning.errors import InputError
from ddpm_lightning.typed import kind_of

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""noise(draw, shape) → standard normal [B, *shape]; x_T is draw 0, step i takes draw i."""

Predict = Callable[[Tensor, Time], Prediction]
"""predict(x_t, t) → the (clipped) prediction there; the condition is already bound."""

Draw = Callable[[int], Tensor]
"""draw(i) → the standard normal noise of step i, counted from 1, of x_t's shape."""


@dataclass(frozen=True, eq=False)
class State:
    """A point of a reverse trajectory: the noisy x_t at level t and the prediction x0 there."""

    t: int
    x_t: Tensor
    x0: Tensor


class Sampler(Configurable, ABC):
    """Sampler: from noise to data by a denoiser's predictions, level by level.

    A sampler whose step needs one prediction and nothing else is a :class:`SingleStep`; any other
    writes :meth:`path` and keeps its history in local variables there.

    Args:
        steps: Number of steps; None visits every level.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding (Imagen, sec. 2.3) instead of plain clipping, against
            saturation under strong guidance: the share of a sample's values that stays within the
            range ``clip``, e.g. 0.995. A prediction that reaches further is cut there and scaled
            back into the range.

    Raises:
        InputError: threshold is not in (0, 1], or clip is not a range.
    """

    chooses_steps: ClassVar[bool] = False
    """Whether the number of evaluations follows from a tolerance, not from the steps."""

    def __init__(
        self,
        steps: int | None = None,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        name = type(self).__name__
        if clip is not None and not clip[0] < clip[1]:
            raise InputError(f"{name}(clip={list(clip)}): give [low, high] with low < high")
        if threshold is not None and not 0 < threshold <= 1:
            raise InputError(
                f"{name}(threshold={threshold:g}): it is the share of values that stays within "
                "the range, above 0 and at most 1; the paper's is 0.995"
            )
        self.steps = steps
        self.spacing = spacing
        self.clip = clip
        self.threshold = threshold

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"{type(self).__name__}({arguments})"

    @abstractmethod
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        """Yield a State at every level visited but 0, and return x_0.

        It starts from x [B, ...], x_T or what stands at the first level visited; ``predict`` has
        condition and clipping in place, ``draw`` is the noise of each step.
        """

    def levels(self, schedule: Schedule) -> list[int]:
        """The levels visited, from the first down to 0."""
        self.spacing.check_sampler(self)
        return self.spacing(schedule, self.steps)

    def tag(self, schedule: Schedule) -> str:
        """Name for files: steps and changed arguments, e.g. ``ddim50_eta1``, ``heun18_karras``."""
        parts = [f"{type(self).__name__.lower()}{len(self.levels(schedule)) - 1}"]
        if not isinstance(self.spacing, UniformSpacing):
            parts.append(type(self.spacing).__name__.removesuffix("Spacing").lower())
        for name, value in self.changed().items():
            if name not in ("steps", "spacing", "clip"):
                values = value if isinstance(value, list | tuple) else [value]
                parts.append(name + "-".join(map(_word, values)))
        return "_".join(parts)

    def clipped(self, data_range: tuple[float, float] | None) -> Self:
        """This sampler, clipping to the data's range unless it has a range of its own."""
        if self.clip is not None or data_range is None:
            return self
        if missing := {"steps", "spacing", "clip"} - self._arguments.keys():
            raise InputError(
                f"{self.class_path()} does not take {', '.join(sorted(missing))}: let its "
                "__init__ take steps, spacing, clip and threshold and pass them on, as DDIM's does"
            )
        return self.replace(clip=data_range)

    def from_level(self, level: int, schedule: Schedule) -> Self:
        """This sampler from that level down: there, then at its own levels below."""
        levels = [level, *(t for t in self.levels(schedule) if t < level)]
        return self.replace(steps=None, spacing=Levels(levels))

    def __call__(
        self,
        denoiser: Denoises,
        x_T: Tensor,
        condition: Condition = Condition(),
        noise: Noise | None = None,
    ) -> Tensor:
        """Sample x_0 [B, ...].

        Args:
            denoiser: The model.
            x_T: [B, ...] noise of standard deviation ``schedule.prior_std``.
            condition: What the denoiser is told beside x_t, B rows.
            noise: Source of the steps' noise; None draws from torch's global generator.
        """
        for state in self.trajectory(denoiser, x_T, condition, noise):
            x = state.x_t
        return x

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: Denoises,
        x_T: Tensor,
        condition: Condition = Condition(),
        noise: Noise | None = None,
    ) -> Iterator[State]:
        """Yield a State at every level visited, the last one x_0; arguments as for a call.

        The network is in evaluation mode until the iterator ends or is closed.
        """
        known = condition

        def predict(x_t: Tensor, t: Time) -> Prediction:
            nonlocal known
            _check_tensor(x_t, x_T, f"{self.class_path()}.path asks for a prediction from")
            prediction = denoiser(x_t, t, known).clip(self.clip, self.threshold)
            # To a tolerance a slope must be a function of x and t, whatever was tried before.
            if not self.chooses_steps:
                known = followed(denoiser, known, prediction)
            return prediction

        draw = bind_noise(noise, like=x_T)
        with evaluation_mode(getattr(denoiser, "net", None)):
            path = _called(self, Sampler, "path", predict, denoiser.schedule, x_T, draw)
            x = yield from _checked(self, path)
        _check_tensor(x, x_T, f"{self.class_path()}.path returns")
        yield State(0, x, x)


class SingleStep(Sampler):
    """A sampler that goes from x_t to x_s by one prediction at x_t."""

    @abstractmethod
    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        """Step from x_t to x_s, s < t; noise() gives standard normal noise of x_t's shape."""

    def checked_step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        """Take a step; raise InputError, naming the class, unless it gives a tensor like x_t."""
        x: Tensor = _called(self, SingleStep, "step", prediction, s, noise)
        _check_tensor(x, prediction.x_t, f"{self.class_path()}.step returns")
        return x

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        for i, (t, s) in enumerate(pairwise(self.levels(schedule)), start=1):
            prediction = predict(x, t)
            yield State(t, x, prediction.x0)
            x = self.checked_step(prediction, s, partial(draw, i))
        return x


def _word(value: Any) -> str:
    """Write a setting in a file's name; a part with its class and its own changed settings."""
    if isinstance(value, Configurable):
        return type(value).__name__.lower() + "".join(
            f"-{name}{_word(one)}" for name, one in value.changed().items()
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _called(owner: Sampler, base: Any, method: str, *arguments: Any) -> Any:
    """Call what a sampler overrides; raise InputError if it does not take these arguments."""
    function = getattr(owner, method)
    try:
        return function(*arguments)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from within the function
        names = [*inspect.signature(getattr(base, method)).parameters][1:]
        takes = [*inspect.signature(function).parameters]
        raise InputError(
            f"{owner.class_path()}.{method} takes ({', '.join(takes)}); it must take "
            f"({', '.join(names)}), as {base.__name__}'s does"
        ) from error


def _checked(owner: Sampler, path: Any) -> Generator[State, None, Any]:
    """Pass on the States of a path and its result; raise InputError for anything else."""
    if not isinstance(path, Generator):
        raise InputError(
            f"{owner.class_path()}.path returns {kind_of(path)}; it must yield State(t, x_t, x0) "
            "at every level but 0, and return x_0"
        )
    with closing(path):
        while True:
            try:
                state = next(path)
            except StopIteration as end:
                return end.value
            if not isinstance(state, State):
                raise InputError(
                    f"{owner.class_path()}.path yields {kind_of(state)}, not State(t, x_t, x0)"
                )
            yield state


def _check_tensor(x: object, like: Tensor, what: str) -> None:
    """Raise InputError unless x is a tensor of the shape of another one."""
    if not isinstance(x, Tensor) or x.shape != like.shape:
        raise InputError(f"{what} {kind_of(x)}, not a tensor of shape {list(like.shape)}")


def bind_noise(noise: Noise | None, like: Tensor) -> Draw:
    """Bind a source of noise to a tensor's shape, dtype and device; None: torch's generator."""

    def fresh(_: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(len(like), *shape, device=like.device)

    def draw(i: int) -> Tensor:
        return (fresh if noise is None else noise)(i, tuple(like.shape[1:])).to(like)

    return draw
