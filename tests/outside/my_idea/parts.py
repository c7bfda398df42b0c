"""Weighting, metric, callback, EMA, label dropout and spacing."""

from lightning.pytorch import Callback

from ddpm_lightning import EMA
from ddpm_lightning.diffusion import LabelDropout, Weighting
from ddpm_lightning.diffusion.samplers import Spacing
from ddpm_lightning.metrics import Metric, Score


class RootSNR(Weighting):
    """The square root of SNR."""

    def __call__(self, level, c_out):
        """Weigh ‖x_0 − x0_hat‖² at these levels."""
        return level.alpha / level.sigma


class Brightness(Metric):
    """How much brighter the samples' features are than the data's."""

    def __call__(self, sets):
        """Compare the means of all features."""
        return {self.name: Score(float(sets.samples.features.mean() - sets.real.features.mean()))}


class Diary(Callback):
    """Writes a line a step into the run folder."""

    def on_train_batch_end(self, trainer, *_):
        """Write the number of the step."""
        with open(f"{trainer.default_root_dir}/diary.txt", "a") as file:
            file.write(f"{trainer.global_step}\n")


class HalfLife(EMA):
    """An average whose memory is half gone after so many steps.

    Args:
        steps: Optimizer steps.
    """

    def __init__(self, steps: float = 100.0) -> None:
        super().__init__()
        self.steps = steps

    def decay_at(self, step: int) -> float:
        """The decay of an update."""
        return 0.5 ** (1 / self.steps)


class DropEveryThird(LabelDropout):
    """Every third row of the global batch forgets its label."""

    def __call__(self, condition, noise):
        """Choose by the place in the global batch."""
        return condition.null((noise.rows % 3 == 0).to(condition.label.device))


class Middle(Spacing):
    """Twice as many of the levels from the lower half."""

    def __call__(self, schedule, steps):
        """Levels from T down to 0."""
        T, upper = schedule.T, steps // 3
        lower = steps - upper
        down = [round(T - i * T / 2 / upper) for i in range(upper)] if upper else [T]
        return [*down, *(round(T / 2 * (1 - i / lower)) for i in range(lower + 1))][-steps - 1 :]
