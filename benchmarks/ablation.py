"""What pays: single changes to one recipe, each trained for the same processor time.

    python -m benchmarks.ablation                                          # a few rows, on digits
    python -m benchmarks.ablation --data-root DIR --measure-cost           # on a CPU, once
    python -m benchmarks.ablation --data-root DIR --device cuda --workers 8
    python -m benchmarks.ablation --print

A row of `ablation_rows.py` is a set of changes to `ablation_base.yaml`. Its cost, processor
seconds of a training step on one core, is measured once on a CPU and stored in the results; it is
then trained for budget / cost steps, wherever it is trained, so rows trained on a GPU compare at
equal CPU time. The learning rate falls to zero over those steps. Of each row 1,000 samples of at
most 50 evaluations are compared with all training images. Runs that are in the results are not
repeated. A copy of the results goes on elsewhere: --out COPY.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_rows import BASE, DECAYS, GUIDED, PLAIN, QUICK, REQUESTS, ROWS
from benchmarks.judges import SAMPLES
from benchmarks.report import machine
from benchmarks.timing import Spread
from benchmarks.trial import Data, Trial, cost_of_step, distances_of_run, judge_of
from ddpm_lightning.files import write_json

HERE = Path(__file__).parent
CONFIG = str(HERE / "ablation_base.yaml")
RESULTS = HERE / "results" / "ablation.json"

BUDGET, SHORT = 700.0, 5.0
"""Seconds of one core: seven minutes of two, less a sixth that two threads lose; on digits."""

FEW = (BASE, "Muon, lr 2e-3", "x0 with v-loss", "weight MinSNR")
"""Rows that are trained on digits unless others are named."""

FEW_SAMPLES = 200

SAMPLED = (QUICK,)
"""Rows whose checkpoints are sampled in every way."""

WORK = ("model.net", "model.codec", "model.optimizer", "model.pairing", "data.", "trainer.")
"""Settings on which the work of a step depends; RATE is none of them."""

RATE = "model.optimizer.lr"

Entry = dict[str, Any]


class Results:
    """The file of costs and runs, written anew after each.

    Args:
        path: The JSON file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"costs": {}, "floors": {}, "runs": []}
        if path.exists():
            self.values = json.loads(path.read_text("utf-8"))

    def costs(self, data: str) -> dict[str, Entry]:
        """Of each row on a data set, ``seconds`` of a step on one core and the machine."""
        return self.values["costs"].setdefault(data, {})

    @property
    def runs(self) -> list[Entry]:
        """All runs."""
        return self.values["runs"]

    def has(self, wanted: Entry) -> bool:
        """Whether there is a run with these entries."""
        return any(wanted.items() <= {**run, "flags": None}.items() for run in self.runs)

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.values)


def main() -> int:
    """Measure costs, train rows or print the table, by the command line."""
    options = parse()
    results = Results(options.out)
    if options.print:
        print(table(results))
        return 0
    rows = options.rows or list(ROWS if options.data_root else FEW)
    if unknown := [row for row in rows if row not in ROWS]:
        print(f"no rows {unknown}; there are {list(ROWS)}", file=sys.stderr)
        return 2
    if options.measure_cost or options.device == "cpu":
        measure_costs(rows, options, results)
    if options.measure_cost:
        return 0
    if missing := [row for row in rows if row not in results.costs(options.data)]:
        print(f"no costs of {missing}; run --measure-cost on a CPU first", file=sys.stderr)
        return 2
    train(rows, options, results)
    print(table(results))
    return 0


def measure_costs(rows: Iterable[str], options: Namespace, results: Results) -> None:
    """Measure what a step of each row costs, where neither it nor its equal is known."""
    costs = results.costs(options.data)
    for row in rows:
        if row in costs:
            continue
        equal = [one for one in costs if work_of(one) == work_of(row)]
        if equal:
            costs[row] = costs[equal[0]]
        else:
            seconds = cost_of_step(Trial(CONFIG, ROWS[row], data_of(options)))
            costs[row] = {"seconds": seconds, "machine": machine()}
            print(f"  … {row}: {1000 * seconds:.0f} ms a step", file=sys.stderr, flush=True)
        results.save()


def work_of(row: str) -> dict[str, Any]:
    """The changes of a row that change what a step costs."""
    flags = ROWS[row].items()
    return {name: value for name, value in flags if name.startswith(WORK) and name != RATE}


def train(rows: Iterable[str], options: Namespace, results: Results) -> None:
    """Train the rows that the results lack, several at a time, and write down each at its end."""
    data, costs = data_of(options), results.costs(options.data)
    if options.data not in results.values["floors"]:
        results.values["floors"][options.data] = judge_of(data, options.device).floor(
            options.samples
        )
        results.save()
    wanted: list[tuple[Trial, Entry]] = []
    for seed in options.seeds:
        for row in rows:
            entry = {"row": row, "data": options.data, "budget": options.budget, "seed": seed}
            if not results.has(entry):
                wanted.append((Trial(CONFIG, ROWS[row], data, options.device, seed), entry))
    # The most steps first: on a GPU these take longest, and none is left alone at the end.
    wanted.sort(key=lambda one: (one[1]["seed"], costs[one[1]["row"]]["seconds"]))
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which share the cores
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        pending = {}
        for trial, entry in wanted:
            steps = round(options.budget / costs[entry["row"]]["seconds"])
            every = entry["row"] in SAMPLED and options.decays
            ways = {name: REQUESTS[name] for name in (REQUESTS if every else (PLAIN, GUIDED))}
            future = pool.submit(
                distances_of_run, trial, steps, ways, options.decays, options.samples
            )
            pending[future] = {**entry, "steps": steps, "flags": dict(trial.flags)}
        for future in as_completed(pending):
            entry = pending[future]
            try:
                found = future.result()
            except Exception as error:  # of one row; the others go on
                print(f"  … {entry['row']} failed: {error}", file=sys.stderr, flush=True)
                continue
            results.runs.append({**entry, **found, "machine": machine()})
            results.save()
            said = f"{entry['row']}, seed {entry['seed']}: {found['distances'][PLAIN]}"
            print(f"  … {said} in {found['seconds']:.0f} s", file=sys.stderr, flush=True)


def table(results: Results) -> str:
    """The results as Markdown: a table of each data set and budget, then of ways to sample."""
    groups: dict[tuple[str, float], list[Entry]] = {}
    for run in results.runs:
        groups.setdefault((run["data"], run["budget"]), []).append(run)
    parts = []
    for (data, budget), runs in sorted(groups.items()):
        floor = results.values["floors"][data]
        said = ", ".join(f"{name} {value:.3g}" for name, value in floor.items())
        title = f"{data}, {budget:.0f} processor seconds a row; floor of test images: {said}"
        names = list(floor)
        parts += [title, "\n".join(rows_of(runs, results.costs(data), names))]
        for row in SAMPLED:
            if lines := list(ways_of([run for run in runs if run["row"] == row], names)):
                parts += [f"The checkpoints of {row} sampled otherwise", "\n".join(lines)]
    machines = sorted({run["machine"].partition(", load")[0] for run in results.runs})
    return "\n\n".join([*parts, *machines])


def rows_of(runs: list[Entry], costs: dict[str, Entry], names: list[str]) -> Iterator[str]:
    """A line a row, the best first: its cost, length, and median distances over the seeds."""
    guided = f"{names[0]}, {GUIDED}"
    head = ["row", "ms a step", "steps", "images", "seeds", *names, guided, "best average"]
    yield line(head)
    yield line(["---"] * len(head))
    by_row: dict[str, list[Entry]] = {}
    for run in runs:
        by_row.setdefault(run["row"], []).append(run)

    def distance(row: str, name: str, way: str = PLAIN) -> Spread:
        return Spread.of([run["distances"][way][name] for run in by_row[row]])

    for row in sorted(by_row, key=lambda row: distance(row, names[0]).median):
        steps = by_row[row][0]["steps"]
        batch = int(by_row[row][0]["flags"].get("data.global_batch_size", 64))
        done = by_row[row][0]["distances"]
        averages = [way for way in done if way.startswith("EMA")]
        ways = {way: distance(row, names[0], way).median for way in [PLAIN, *averages]}
        best = min(ways, key=lambda way: ways[way])
        yield line(
            [
                f"**{row}**" if row == BASE else row,
                f"{1000 * costs[row]['seconds']:.0f}",
                str(steps),
                str(steps * batch),
                str(len(by_row[row])),
                *(str(distance(row, name)) for name in names),
                str(distance(row, names[0], GUIDED)) if GUIDED in done else "",
                f"{best.removeprefix('EMA ') if best != PLAIN else 'own'}: {ways[best]:.3g}",
            ]
        )


def ways_of(runs: list[Entry], names: list[str]) -> Iterator[str]:
    """A line for each way of sampling the checkpoints of some runs."""
    if not runs:
        return
    yield line(["sampling", "evaluations", *names])
    yield line(["---"] * (2 + len(names)))
    for way in runs[0]["distances"]:
        found = [Spread.of([run["distances"][way][name] for run in runs]) for name in names]
        yield line([way, f"{runs[0]['evaluations'][way]:g}", *map(str, found)])


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set of the package; MNIST, or Digits")
    parser.add_argument("--data-root", "--data.root", help="folder of its files; default: digits")
    parser.add_argument("--rows", nargs="+", help="names of rows; default: all, on digits a few")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=float, help="seconds of one core that a row trains for")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="rows trained at the same time")
    parser.add_argument(
        "--measure-cost", "--measure_cost", action="store_true", help="only measure costs"
    )
    parser.add_argument("--print", action="store_true", help="only print the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.data = options.data or ("MNIST" if options.data_root else "Digits")
    options.budget = options.budget or (BUDGET if options.data_root else SHORT)
    options.decays = DECAYS if options.data_root else ()
    options.samples = SAMPLES if options.data_root else FEW_SAMPLES
    return options


def data_of(options: Namespace) -> Data:
    """The data set that the command line names."""
    return Data(options.data, options.data_root or "data")


if __name__ == "__main__":
    sys.exit(main())
