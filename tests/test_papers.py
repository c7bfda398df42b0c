"""Figures and tables that go into a paper."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.report import sweep_table
from ddpm_lightning.evaluation.sweep import draw_sweep
from ddpm_lightning.evaluation.table import metric_title, readable
from ddpm_lightning.metrics.metric import Score
from ddpm_lightning.metrics.result import Result, write_results
from tests.small import fail


def row(curve: str, evaluations: int, value: float, error: float | None = 0.25) -> dict:
    floor = {"value": 2.0, "n": 500, "reference_n": 850}
    record = {"metric": "fd_lenet", "value": value, "standard_error": error, "floor": floor}
    return {"curve": curve, "evaluations": evaluations, "results": [record]}


ROWS = [row("DPMSolverPP", n, 30 / n) for n in (5, 10)] + [row("DDIM, eta=1", 10, 5.0, None)]


def test_csv_has_errors_in_a_column_of_their_own():
    read = list(csv.DictReader(io.StringIO(sweep_table(ROWS, "csv"))))
    assert [one["curve"] for one in read] == ["DPMSolverPP", "DPMSolverPP", "DDIM, eta=1"]
    assert [float(one["fd_lenet"]) for one in read] == [6.0, 3.0, 5.0]
    assert [one["fd_lenet_error"] for one in read] == ["0.25", "0.25", ""]


def test_latex_is_a_tabular_of_escaped_cells():
    lines = sweep_table(ROWS, "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[2] == r" & NFE & Fréchet distance (LeNet) \\"
    assert lines[4] == r"DPM-Solver++ & 5 & 6 $\pm$ 0.25 \\"
    assert lines[6] == r"DDIM, $\eta$ = 1 & 10 & 5 \\"
    assert lines[-1] == r"\end{tabular}"


def test_markdown_has_as_many_cells_in_every_line():
    lines = sweep_table(ROWS, "markdown").splitlines()
    assert lines[2] == "| DPM-Solver++ | 5 | 6 ± 0.25 |"
    assert {line.count("|") for line in lines} == {4}


def result(folder: Path, value: float, error: float) -> Path:
    folder.mkdir()
    found = Result("fd_lenet", Score(value, error), {"n": 10}, {"sha256": "0"})
    write_results(folder / "results.json", [found])
    return folder


def test_compare_gives_the_difference_with_its_error(tmp_path):
    a, b = result(tmp_path / "a", 10.0, 0.3), result(tmp_path / "b", 9.0, 0.4)
    (read,) = csv.DictReader(io.StringIO(compare_results(a, b, layout="csv")))
    assert read["metric"] == "fd_lenet"
    assert (float(read["difference"]), float(read["difference_error"])) == (-1.0, 0.5)
    last = compare_results(a, b, layout="latex").splitlines()[4]
    assert last == r"Fréchet distance (LeNet) & 10 $\pm$ 0.3 & 9 $\pm$ 0.4 & $-$1 $\pm$ 0.5 \\"


def test_the_command_prints_the_table_alone(tmp_path, capsys):
    a, b = result(tmp_path / "a", 10.0, 0.3), result(tmp_path / "b", 9.0, 0.4)
    capsys.readouterr()
    main(["compare", str(a), str(b), "--table=markdown"])
    assert all(line.startswith("|") for line in capsys.readouterr().out.splitlines())


def test_error_bars_of_equal_evaluations_stand_side_by_side():
    rows = [row(name, 10, 3.0) for name in ("DDIM", "DDPM", "Heun")]
    containers = draw_sweep(rows, "fd_lenet").axes[0].containers
    x = [container.lines[0].get_xdata()[0] for container in containers]
    assert len(set(x)) == 3
    assert x[1] == 10
    assert max(x) / min(x) < 1.1


def test_names_are_those_of_papers():
    assert metric_title("fd_lenet_inf") == "Fréchet distance (LeNet, extrapolated)"
    assert metric_title("my_metric") == "my_metric"
    assert readable("DPMSolverPP, order=3, guidance 2") == "DPM-Solver++, order = 3, w = 2"
    axes = draw_sweep(ROWS, "fd_lenet").axes[0]
    assert axes.get_ylabel() == "Fréchet distance (LeNet)"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_a_plot_is_written_by_its_ending_and_alike_twice(ending, tmp_path):
    for name in ("a", "b"):
        main(["plot", "schedule", f"--out={tmp_path / name}.{ending}"])
    first = (tmp_path / f"a.{ending}").read_bytes()
    assert first == (tmp_path / f"b.{ending}").read_bytes()
    assert {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[ending] in first[:10]


def test_a_strip_as_svg_has_the_pixels_of_the_png(tmp_path):
    words = ("plot", "forward", "--data=Digits", "--n=1", "--levels=2")
    for ending in ("png", "svg"):
        main([*words, f"--out={tmp_path / 'a'}.{ending}"])
    width, height = Image.open(tmp_path / "a.png").size
    svg = (tmp_path / "a.svg").read_text()
    assert f'width="{width * 0.72:g}pt" height="{height * 0.72:g}pt"' in svg
    assert "data:image/png;base64," in svg


def test_another_ending_is_refused_with_those_that_work(tmp_path, capsys):
    line = fail(capsys, "plot", "schedule", f"--out={tmp_path / 'a.eps'}")
    assert "name a file that ends in .png or .pdf or .svg" in line
