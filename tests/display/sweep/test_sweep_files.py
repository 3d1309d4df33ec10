"""The files of a sweep, its figures, and its table on the screen."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_sweep import compared, draw, every_status, large_sweep, made_row, made_sweep, measured

from fastdiff.display.sweep import sweep_text, write_sweep_pages
from fastdiff.display.sweep.charts import charts, uncompared
from fastdiff.display.sweep.labels import label
from fastdiff.display.sweep.markdown import markdown
from fastdiff.display.sweep.page import page
from fastdiff.display.sweep.pictures import embed
from fastdiff.display.sweep.spreadsheet import plain
from fastdiff.latency import pareto, speedup

# Figures ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with every status in it, and its pages."""
    path = tmp_path_factory.mktemp("sweep")
    write_sweep_pages(path, every_status(path))
    return path


def test_a_speed_up_has_the_interval_of_both_medians() -> None:
    slow = made_row(1, {}, **measured(0.8))
    quick = made_row(2, {}, cell="quick", **measured(0.4))
    found = speedup(quick, slow)
    half = math.hypot(math.log(1.02 / 0.99) / 2, math.log(1.02 / 0.99) / 2)
    assert found == {"ratio": 2.0, "ci95": pytest.approx([2 * math.exp(-half), 2 * math.exp(half)])}
    back = speedup(slow, quick)
    assert back is not None
    assert back["ci95"] == pytest.approx([1 / found["ci95"][1], 1 / found["ci95"][0]])


def test_a_row_against_itself_is_one_without_an_interval() -> None:
    base = made_row(1, {}, cell="base", **measured(0.8))
    again = made_row(2, {}, cell="again", same_as="base", **measured(0.8))
    assert speedup(base, base) == speedup(again, base) == {"ratio": 1.0, "ci95": None}


def test_without_an_interval_or_a_latency_nothing_is_made_up() -> None:
    base = made_row(1, {}, cell="base", **measured(0.8))
    few = made_row(2, {}, cell="few", **measured(0.4))
    few["latency_s"]["ci95"] = None
    empty = made_row(3, {}, latency_s={"samples": [], "median": None, "ci95": None})
    assert speedup(few, base) == {"ratio": 2.0, "ci95": None}
    assert speedup(empty, base) is speedup(base, None) is speedup(made_row(4, {}), base) is None


def test_the_pareto_front_has_what_nothing_beats() -> None:
    rows = [
        made_row(1, {}, cell="exact", **measured(1.0)),
        made_row(2, {}, cell="beaten", **measured(0.9, 30.0)),
        made_row(3, {}, cell="close", **measured(0.8, 45.0)),
        made_row(4, {}, cell="same as close", **measured(0.8, 45.0)),
        made_row(5, {}, cell="fast", **measured(0.2, 20.0)),
        made_row(6, {}, cell="slow and exact", **measured(1.1)),
        made_row(7, {}, cell="not compared", **measured(0.1, quality=None)),
        made_row(8, {}, cell="no picture", **measured(0.1, 50.0, status="invalid_output")),
        made_row(9, {}),
    ]
    assert pareto(rows) == {"exact", "close", "same as close", "fast"}


def test_a_label_leaves_out_what_chooses_nothing() -> None:
    varied = ["precision", "quant", "generation.steps"]
    values = {"precision": "bf16", "quant": "none", "generation.steps": "20"}
    assert label(made_row(1, values), varied) == "bf16, steps 20"
    assert label(made_row(1, {"quant": "none"}), ["quant"]) == "nothing chosen"


# Files --------------------------------------------------------------------------------------------


def test_all_three_files_are_written_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    write_sweep_pages(tmp_path, made_sweep([made_row(1, {"precision": "fp32"}, **measured(0.6))]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.html",
        "sweep.csv",
        "sweep.md",
    ]


def test_csv_has_a_line_for_every_cell(folder: Path) -> None:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 17
    assert len((folder / "sweep.csv").read_text(encoding="utf-8").splitlines()) == 18
    assert lines[2]["cell"] == "quick"
    assert lines[2]["quant"] == "int8"
    assert float(lines[2]["latency_s_median"]) == 0.21
    assert float(lines[2]["psnr_db"]) == 33.9
    assert lines[2]["compile_cache"] == "cold"
    assert lines[6]["reason"] == "the picture is not finite: 64 % NaN / first in the VAE"
    assert lines[15]["status"] == lines[15]["latency_s_median"] == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@cmd", "'@cmd"),
        ("+1+1", "'+1+1"),
        ("-x", "'-x"),
        ("-1.5e-3", "-1.5e-3"),
        ("+7", "+7"),
        (-2.5, -2.5),
        ("a\nb", "a / b"),
        (None, None),
    ],
)
def test_no_spreadsheet_takes_a_value_for_a_formula(value: object, written: object) -> None:
    assert plain(value) == written


def test_markdown_has_a_row_for_every_cell_and_reasons_once(tmp_path: Path) -> None:
    text = markdown(every_status(tmp_path))
    assert "\nshapes (a red circle) on cpu, 2 threads. " in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 17
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert (
        "| 2 | fp32 | sdpa | none | none | ok | 1.32× (1.29 to 1.35) | 0.470 s (0.465 to 0.479 s) |"
        in text
    )
    assert "- **8 and 9** incompatible: quant=fp8 needs an NVIDIA GPU" in text
    assert "**The sweep was interrupted: 15 of 17 cells have ended.**" in text
    assert "the same run as 1 |" in text
    assert "<script" not in text


def test_the_page_is_the_same_for_the_same_sweep(folder: Path) -> None:
    before = (folder / "index.html").read_bytes()
    write_sweep_pages(folder, every_status(folder))
    assert (folder / "index.html").read_bytes() == before


def test_the_page_names_no_address_that_it_would_load(folder: Path) -> None:
    page = re.sub(
        r'<script type="text/plain".*?</script>',
        "",
        (folder / "index.html").read_text(encoding="utf-8"),
    )
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page) == []
    assert "default-src 'none'" in page


def test_data_inside_the_page_is_strict_json(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page)
    assert "<" not in found
    assert json.loads(found)["rows"]["quick"]["latency_s"]["median"] == 0.21


def test_writing_pages_computes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from made_sweep import every_status\n"
        "from fastdiff.display.sweep import write_sweep_pages\n"
        "print('PIL' in sys.modules or 'plotly' in sys.modules)\n"
        "write_sweep_pages(Path(sys.argv[2]), every_status(Path(sys.argv[2])))\n"
        "print('torch' in sys.modules)"
    )
    typed = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    ended = subprocess.run(typed, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_a_grid_without_rows_has_pages(tmp_path: Path) -> None:
    write_sweep_pages(tmp_path, made_sweep([]))
    assert (tmp_path / "sweep.csv").read_text(encoding="utf-8") == "cell,status\n"


# Charts and pictures ------------------------------------------------------------------------------


def test_charts_draw_each_run_once_and_only_what_is_ok(tmp_path: Path) -> None:
    found = charts(every_status(tmp_path))
    assert found["speedup"]["data"][0]["customdata"] == [
        "quick",
        "large",
        "alone",
        "sdpa",
        "base",
        "slow",
    ]
    others, front = found["quality"]["data"]
    assert others["customdata"] == ["slow"]
    assert front["customdata"] == ["quick", "large", "sdpa", "base"]
    axis = found["quality"]["layout"]["yaxis"]
    assert axis["ticktext"][-1] == "identical"
    assert axis["tickvals"][-1] == front["y"][-1] > 61.3


def test_a_point_close_to_another_leaves_its_number_out() -> None:
    rows = [
        made_row(n, {"steps": str(n)}, **measured(latency_s, psnr_db))
        for n, (latency_s, psnr_db) in enumerate([(0.2, 30.0), (0.201, 30.1), (0.9, 50.0)], 1)
    ]
    _, front = charts(made_sweep(rows))["quality"]["data"]
    assert front["text"] == ["1", "", "3"]


def test_what_others_disturbed_is_marked_in_every_chart(tmp_path: Path) -> None:
    quiet = made_row(1, {"steps": "1"}, **measured(0.2, 30.0))
    rows = [quiet, made_row(2, {"steps": "2"}, **measured(0.3, 40.0), disturbed="others took 40 %")]
    found = charts(made_sweep(rows))
    names = [each["text"] for each in found["speedup"]["layout"]["annotations"]]
    assert names == ["1  1", "2  2 (disturbed)"]
    assert "2  2 (disturbed)" in found["memory"]["layout"]["annotations"][1]["text"]
    other, front = found["quality"]["data"]
    assert [*other["marker"]["symbol"], *front["marker"]["symbol"]] == ["circle", "circle-open"]
    hollow = "Hollow points were measured while others took the machine."
    assert hollow in page(tmp_path, made_sweep(rows))
    assert hollow not in page(tmp_path, made_sweep([quiet]))


def test_rows_without_quality_are_named(tmp_path: Path) -> None:
    assert uncompared(every_status(tmp_path)) == ["6 (bf16, sdpa): quality=none: not asked"]


def test_identical_pictures_alone_have_their_line() -> None:
    found = charts(made_sweep([made_row(1, {"precision": "fp32"}, **measured(0.5))]))
    assert found["quality"]["layout"]["yaxis"]["ticktext"] == ["identical"]


def test_identical_pictures_are_embedded_once_and_large_ones_smaller(tmp_path: Path) -> None:
    data = every_status(tmp_path)
    found = embed(tmp_path, data["rows"])
    assert found.keys["cells/same/image-0.png"] == found.keys["references/r/image-0.png"]
    assert len(found.embedded) == 4
    large = found.embedded[found.keys["cells/large/image-0.png"]]
    assert (large["width"], large["height"], large["scaled"]) == (640, 640, True)
    assert large["uri"].startswith("data:image/webp;base64,")
    small = found.embedded[found.keys["cells/far/image-0.png"]]
    assert small["uri"].startswith("data:image/png;base64,")


def test_what_would_make_the_page_too_large_is_linked(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", (1, 2, 3))
    rows = [made_row(1, {}, **measured(0.5, images=["a.png", "gone.png"]))]
    found = embed(tmp_path, rows, most_bytes=10)
    assert found.of(["a.png", "gone.png"]) == [
        {"path": "a.png", "key": None, "reason": "not in this page, which would grow too large"},
        {"path": "gone.png", "key": None, "reason": "can't be read (No such file or directory)"},
    ]


def test_a_file_that_is_no_picture_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("half a pict")
    found = embed(tmp_path, [made_row(1, {}, **measured(0.5, images=["a.png"]))])
    assert found.missing["a.png"].startswith("can't be read (cannot identify image file")


# The screen ---------------------------------------------------------------------------------------


def test_the_screen_has_figures_and_reasons_in_80_columns(tmp_path: Path) -> None:
    text = sweep_text(every_status(tmp_path))
    assert max(map(len, text.splitlines())) <= 80
    assert " 3 bf16, sdpa, int8, regional ok             0.210 s 2.95x    33.9 dB   0.8 GB" in text
    assert "  cells           17 cells: 7 ok, 1 invalid output, 3 incompatible," in text
    assert "  incompatible    8, 9: quant=fp8 needs an NVIDIA GPU" in text
    assert "instead: qkv=separate, or" in text
    assert text.splitlines()[-1] == (
        "  state           interrupted; the same line again goes on from here"
    )


def test_a_small_grid_has_a_column_for_each_key() -> None:
    rows = [made_row(n, {"precision": p, "quant": "none"}, **measured(0.5 / n)) for n, p in enumerate(("fp32", "bf16"), 1)]  # fmt: skip
    assert sweep_text(made_sweep(rows)).splitlines()[2:5] == [
        "    precision quant status latency speed-up PSNR      memory",
        "  1 fp32      none  ok     0.500 s 1.00x    identical 0.8 GB",
        "  2 bf16      none  ok     0.250 s 2.00x    identical 0.8 GB",
    ]


def test_a_long_grid_shows_its_fastest_and_counts_the_rest() -> None:
    text = sweep_text(large_sweep(200))
    assert max(map(len, text.splitlines())) <= 80
    assert "the fastest 20 of 176; 156 more are on the page" in text
    assert "49, 50, 51, 52, 53 and 19 more: attention=xformers needs" in text


def test_a_sweep_that_stopped_says_why() -> None:
    data = made_sweep(
        [made_row(1, {"precision": "fp32"})],
        state="stopped",
        error="no space left on the device",
        environment=None,
    )
    assert sweep_text(data) == (
        "fastdiff  sweep grid: shapes, nothing measured\n"
        "\n"
        "  cells           1 cell: 1 not run\n"
        "  state           stopped: no space left on the device; the same line again goes\n"
        "                  on from here"
    )


@pytest.mark.parametrize("quality", [compared(None), compared(41.2), None])
def test_every_kind_of_quality_has_words(quality: dict[str, object] | None, tmp_path: Path) -> None:
    write_sweep_pages(
        tmp_path, made_sweep([made_row(1, {"a": "b"}, **measured(1.0, quality=quality))])
    )
    assert (tmp_path / "index.html").is_file()
