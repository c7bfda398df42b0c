"""The commonest slips at the terminal, and what the one line that answers them must contain.

``fit …`` stands for a tiny run of configs/digits.yaml, ``sample …`` for a command that has its
required flags, DIGITS for that config, and FILE for a file of settings that holds ``content``.
"""

from __future__ import annotations

from typing import NamedTuple


class Slip(NamedTuple):
    """A command line with a mistake in it."""

    words: str
    contains: tuple[str, ...]
    content: bytes = b""


SLIPS = [
    # Commands
    Slip("", ("which command?", "fit", "sample")),
    Slip("fti", ("no command 'fti'; did you mean fit?",)),
    Slip("sampel", ("no command 'sampel'; did you mean sample?",)),
    Slip("plot forwrd", ("no command 'forwrd'; did you mean forward?",)),
    Slip("-c DIGITS fit", ("the command comes first: python -m ddpm_lightning fit",)),
    Slip("fit configs/digits.yaml", ("did you mean --config configs/digits.yaml?",)),
    # Flags that are missing: all at once
    Slip("fit", ("missing: --data",)),
    Slip("sample", ("missing: --ckpt, --out",)),
    Slip("fit --data Conditioned", ("missing: --data.data, --data.task",)),
    Slip("fit … --trainer.callbacks EarlyStopping", ("missing: --trainer.callbacks.monitor",)),
    # Flags
    Slip("fit … --trainer.max_stepz 3", ("did you mean --trainer.max_steps?",)),
    Slip("fit … --trainer.max-steps 3", ("did you mean --trainer.max_steps?",)),
    Slip("fit … --max_steps 3", ("no flag --max_steps; did you mean --trainer.max_steps?",)),
    Slip("fit … -max_steps 3", ("did you mean --trainer.max_steps?",)),
    Slip("fit … --model.schdule Cosine", ("did you mean --model.schedule?",)),
    Slip("fit … --foo 3", ("no flag --foo; --help lists them",)),
    Slip("fit … --trainer.max_steps", ("argument --trainer.max_steps: expected one",)),
    Slip("fit … --trainer.max_steps 3 foo", ("'foo'; --trainer.max_steps takes one word",)),
    Slip("sample … --n 2 --seed 1 2", ("unexpected '2'; --seed takes one word",)),
    Slip("sample x.ckpt --out o", ("unexpected 'x.ckpt'; --FLAG takes one word",)),
    Slip("fit … --model.seed 3", ("model.seed", "seed_everything")),
    Slip("sample … --samplr DDIM", ("no flag --samplr; did you mean --sampler?",)),
    Slip("sample … --ck x", ("no flag --ck; did you mean --ckpt?",)),
    # Arguments of classes
    Slip("fit … --model.net.chanels 3", ("UNet has no argument 'chanels'", "mean channels?")),
    Slip("fit … --model.schedule.TT 3", ("Cosine has no argument 'TT'; did you mean T?",)),
    Slip("fit … --model.optimizer.lrr 1", ("Adam has no argument 'lrr'; did you mean lr?",)),
    Slip("fit … --grid.frame 3", ("SampleGrid has no argument 'frame'", "mean frames?")),
    Slip("fit … --metrics PointMetrics --metrics.refrence val", ("did you mean reference?",)),
    Slip("sample … --edit SDEdit --edit.strenth 1", ("has no argument 'strenth'", "strength?")),
    # Classes
    Slip("fit … --model.schedule Cosin", ("model.schedule: no class 'Cosin'", "mean Cosine?")),
    Slip("fit … --model.schedule Foo", ("no class 'Foo'", "choose one of", "Cosine, ")),
    Slip("fit … --data Digit", ("data: no class 'Digit'; did you mean Digits?",)),
    Slip("fit … --model.optimizer Adm", ("no class 'Adm'; did you mean Adam?",)),
    Slip("fit … --grid.sampler DIM", ("grid.sampler", "no class 'DIM'; did you mean DDIM?")),
    Slip("fit … --metrics PointMetric", ("no class 'PointMetric'; did you mean PointMetrics?",)),
    Slip("fit … --trainer.callbacks LossByTime", ("no class", "did you mean LossByTimestep?")),
    Slip(
        "fit … --model.net my.module.Net",
        ("model.net: No module named 'my'; if the class is your own, run from the folder of its",),
    ),
    Slip("sample … --sampler my.Own", ("sampler: No module named 'my'; ", "run from the folder")),
    Slip("sample … --sampler my/own.py", ("my/own.py is a file; name the class: my.own.CLASS",)),
    Slip("fit … --model.net ./net.py", ("model.net: ./net.py is a file", "class: net.CLASS")),
    Slip("fit … --model.net ../net.py", ("name the class: net.CLASS, from the folder ",)),
    Slip(
        "fit -c DIGITS -c FILE",
        ("grid.sampler: my/__init__.py is a file; name the class: my.CLASS",),
        b"grid: {sampler: {class_path: my/__init__.py}}",
    ),
    Slip(
        "fit … --data ImageFolder --data.root x --data.image_size 30",
        ("ImageFolder has no argument 'image_size'; did you mean size?",),
    ),
    Slip("fit … --model.schedule torch.nn.Linear", ("torch.nn.Linear", "not a Schedule")),
    Slip("fit … --model.schedule.help Cosin", ("no class 'Cosin'; did you mean Cosine?",)),
    Slip(
        "sample … --sampler Linear",
        ("Linear is a Schedule, not a Sampler; choose one of ",),
    ),
    # Values
    Slip("sample … --n many", ("n: expected int, got many",)),
    Slip("sample … --n 2.5", ("n: expected int, got 2.5",)),
    Slip("sample … --weights emma", ("weights: expected one of 'ema', 'raw', got emma",)),
    Slip("sample … --sampler DDIM --sampler.steps few", ("DDIM: expected int or null, got few",)),
    Slip("sample … --labels 1,2", ("labels: expected ", 'e.g. "[1,2]"')),
    Slip("sample … --labels three", ("got three; Class labels, numbers from 0",)),
    Slip("sample … --labels 1 2", ("unexpected '2'", 'e.g. "[1,2]"')),
    Slip(
        "fit … --model.net.multipliers 1,2",
        ('expected list of int, got 1,2; a list is one word in brackets, e.g. "[1,2]"',),
    ),
    Slip("fit … --model.net.block convnet", ("one of 'residual', 'convnext', ", "got convnet")),
    Slip("fit … --data.resize crop", ("expected one of 'pad', 'bilinear', got crop",)),
    Slip("fit … --trainer.max_steps many", ("trainer.max_steps: expected int, got many",)),
    Slip("fit … --seed_everything true", ("seed_everything True: give a number",)),
    # Guidance: a number, or its settings
    Slip("sample … --guidance strong", ("guidance: expected float", "got strong")),
    Slip("sample … --guidance.scal 2", ("no argument 'scal'; did you mean scale?",)),
    Slip("sample … --guidance 2 --guidance.interval [0.8,0.2]", ("0 ≤ low < high ≤ 1",)),
    Slip(
        "sample … --guidance 2 --guidance.interval [0.8]",
        ("guidance.interval of Guidance: expected list of float or null, got [0.8]",),
    ),
    Slip("sample … --guidance.scale strong", ("scale of Guidance: expected float, got ",)),
    Slip("sample … --guidance.scale 2 --guidance.rescale 3", ("rescale 3: it lies between 0",)),
    Slip("sample … --guidance_interval [0,1]", ("did you mean --guidance?",)),
    # Files
    Slip("fit --config zzz.yaml", ("no config file zzz.yaml", "No such file")),
    Slip("fit --config DIGIT", ("no config file", "did you mean digits?")),
    Slip("fit --config .", ("no config file .: Is a directory",)),
    Slip("fit --config FILE", ("settings.yaml holds no settings",)),
    Slip("fit -c FILE", ("settings.yaml holds no settings (name: value)",), b"just words"),
    Slip("fit --config=FILE", ("settings.yaml is not a text file of settings",), b"\x89PNG"),
    Slip("fit --config FILE", ("settings.yaml, line 2: found character",), b"a:\n\tb: 1\n"),
    Slip("fit --config FILE", ("settings.yaml, line 3: ",), b"a: [1,\nb: 2\n"),
    Slip("fit --config FILE", ("no setting modle", "did you mean model?"), b"modle: {seed: 1}"),
    Slip("fit --config FILE", ("did you mean model.optimizer?",), b"model: {optimiser: Adam}"),
    Slip(
        "fit -c DIGITS -c FILE",
        ("grid.guidance", "expected float", "got strong"),
        b"grid: {guidance: strong}",
    ),
    Slip(
        "fit -c DIGITS -c FILE",
        ("trainer.callbacks.bins of LossByTimestep: expected int, got few",),
        b"trainer: {callbacks: [{class_path: LossByTimestep, init_args: {bins: few}}]}",
    ),
    Slip("sample --ckpt nowhere.ckpt --out o", ("no checkpoint at nowhere.ckpt",)),
    Slip("sample --ckpt . --out o", (". is a folder, not a checkpoint",)),
    # What constructors refuse
    Slip("fit … --model.net.channels 30", ("groups",)),
    Slip("fit … --model.optimizer.lr -1", ("Invalid learning rate",)),
    Slip("fit … --trainer.accelerator gpuu", ("gpuu", "Available names are")),
    Slip("fit … --data.global_batch_size 0", ("global_batch_size=0", "1 or more")),
    Slip("fit … --trainer.accumulate_grad_batches 0", ("accumulate_grad_batches 0: give 1",)),
    Slip("fit … --trainer.val_check_interval 0", ("val_check_interval 0: give ",)),
    Slip("fit … --trainer.default_root_dir /proc/x", ("nothing can be written into /proc/x",)),
]
"""Most of them typed by new users."""


def command_line(slip: Slip, root: str, digits: str) -> list[str]:
    """Spell a slip out as the words that main takes, with its files below a folder."""
    file = f"{root}/settings.yaml"
    if "FILE" in slip.words:
        with open(file, "wb") as stream:
            stream.write(slip.content)
    tiny = (
        f"--config {digits} --model.net.channels=8 --model.net.groups=4 --model.net.blocks=1 "
        f"--trainer.max_steps=2 --trainer.default_root_dir={root}/run --trainer.accelerator=cpu "
        "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
    )
    words = slip.words.replace("fit …", f"fit {tiny}").replace(
        "sample …", "sample --ckpt x --out o"
    )
    words = words.replace("DIGITS", digits).replace("DIGIT", digits.replace("digits", "digit"))
    return words.replace("FILE", file).split()
