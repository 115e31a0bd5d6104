import json

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from benchmarks import measure, report, scaling
from benchmarks import run as command
from benchmarks.case import Case, Floor, discover, forward_and_gradient, normal, select
from zoo.extras import require

PEAKS = measure.Peaks({"float32": 1e9}, 1e9)


def absent(n):
    return require("a_framework_that_is_not_here", "bench")


def broken(n):
    raise ValueError("no such size")


def interrupted(n):
    raise KeyboardInterrupt


def toy(**changes):
    options = {
        "name": "toy.sum",
        "sizes": {"small": {"n": 8}, "large": {"n": 16}},
        "small": ("small",),
        "build": lambda n: (jnp.sum, (jnp.ones(n),)),
        "rivals": {
            "product": lambda n: (lambda x: x @ jnp.ones(n), (jnp.ones(n),)),
            "Python": lambda n: lambda: sum([1.0] * n),
            "absent": absent,
        },
        "equal": ("product",),
        "count": lambda n: n,
        "unit": "numbers",
        "floor": lambda n: Floor(n, 4 * n),
    }
    return Case(**(options | changes))


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch):
    monkeypatch.setattr(measure, "measure_peaks", lambda **_: PEAKS)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new folder" / "rows.jsonl"


@pytest.mark.parametrize("keeps_output", [False, True])
def test_forward_and_gradient_of_plain_functions(keeps_output):
    forward, gradient = forward_and_gradient(
        "toy.power",
        lambda x, *, n: x**n,
        {"absent": lambda x, *, n: absent(n)},
        lambda rows, **_: [np.arange(1.0, 1 + rows, dtype=np.float32)],
        options=("n",),
        keeps_output=keeps_output,
        sizes={"small": {"rows": 3, "n": 2}},
        floor=lambda rows, n: Floor(rows, rows),
    )
    assert (forward.name, gradient.name) == ("toy.power", "toy.power gradient")
    assert forward.small == gradient.small == ("small",)
    assert (forward.floor, gradient.equal) == (None, ("absent",))
    function, arguments = forward.build(rows=3, n=2)
    np.testing.assert_allclose(function(*arguments), [1, 4, 9])
    function, arguments = gradient.build(rows=3, n=2)
    output, slope = function(*arguments)
    weights = normal(1, 3)
    expected = [1, 4, 9] if keeps_output else weights @ [1, 4, 9]
    np.testing.assert_allclose(output, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, weights * [2, 4, 6], rtol=1e-6)
    with pytest.raises(ImportError, match="a_framework_that_is_not_here"):
        gradient.rivals["absent"](rows=3, n=2)


@pytest.mark.slow
def test_rows_hold_what_was_measured(file, capsys):
    assert command.run([(toy(), "small")], rounds=3, output=file) == 0
    rows = {row["program"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert list(rows) == ["zoo", "product", "Python", "absent"]
    ours = rows["zoo"]
    assert (ours["case"], ours["size"], ours["parameters"]) == ("toy.sum", "small", {"n": 8})
    low, high = ours["quartiles_seconds"]
    assert 0 < ours["best_seconds"] <= low <= ours["median_seconds"] <= high
    assert ours["samples"] >= 3
    assert ours["trace_seconds"] > 0
    assert ours["compile_seconds"] > 0
    assert ours["memory_bytes"] >= 8 * 4
    assert ours["times_zoo"] == 1
    assert ours["rate"] == pytest.approx(8 / ours["median_seconds"])
    assert ours["bound"] == "memory"  # 32 bytes take longer than 8 operations at equal peaks
    assert ours["roofline_fraction"] == pytest.approx(32e-9 / ours["median_seconds"])
    python = rows["Python"]
    assert python["times_zoo"] == pytest.approx(python["median_seconds"] / ours["median_seconds"])
    assert "roofline_fraction" not in python, "it is not said to do the same work"
    assert rows["absent"]["status"] == "not installed: a_framework_that_is_not_here"
    about = ours["environment"]
    assert about["platform"] == "cpu"
    assert about["peak_operations"] == {"float32": 1e9}
    assert {"jax", "torch"} <= about["versions"].keys()
    assert {"date", "commit", "device", "threads"} <= about.keys()
    printed = capsys.readouterr().out
    assert "not the seconds" in printed
    assert "threads" in printed


def test_failed_rival_leaves_the_rest(file, capsys):
    case = toy(rivals={"broken": broken, "Python": lambda n: lambda: n})
    assert command.run([(case, "small")], rounds=1, output=file) == 1
    status = [json.loads(line)["status"] for line in file.read_text().splitlines()]
    assert status == ["ok", "failed: ValueError: no such size", "ok"]
    assert "no such size" in capsys.readouterr().err


def test_interrupt_keeps_finished_blocks(file, capsys):
    chosen = [(toy(), "small"), (toy(name="toy.stop", build=interrupted), "small")]
    assert command.run(chosen, rounds=1, output=file) == 130
    assert {json.loads(line)["case"] for line in file.read_text().splitlines()} == {"toy.sum"}
    assert str(file) in capsys.readouterr().err


def test_without_a_floor_xla_counts(file):
    assert command.run([(toy(floor=None), "small")], rounds=1, output=file) == 0
    ours = json.loads(file.read_text().splitlines()[0])
    assert ours["counted_by"] == "XLA"
    assert ours["bytes"] >= 8 * 4


def test_programs_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(measure, "_seconds", lambda call: call() or 1.0)
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure.time_in_turns(calls, rounds=4)
    assert "".join(order[-12:]) == "abc" * 4
    assert {timing.samples for timing in timings.values()} == {4}


def test_peaks_are_measured(monkeypatch):
    monkeypatch.undo()
    peaks = measure.measure_peaks(matrix_size=16, copy_bytes=1024, dtypes=("float32", "bfloat16"))
    assert set(peaks.operations) == {"float32", "bfloat16"}
    assert min(*peaks.operations.values(), peaks.bandwidth) > 0


def test_share_of_others(monkeypatch):
    clocks = iter([(100.0, 40.0, 5.0), (120.0, 50.0, 9.0)])
    monkeypatch.setattr(measure.Others, "_clocks", staticmethod(lambda: next(clocks)))
    # Of 20 core seconds 10 were idle and 4 ours.
    assert measure.Others().share() == pytest.approx(6 / 20)


def test_share_of_others_is_a_share_of_this_machine():
    share = measure.Others().share()
    assert share is None or 0 <= share <= 1


def test_busy_blocks_are_marked(file, monkeypatch, capsys):
    monkeypatch.setattr(measure.Others, "share", lambda self: 0.5)
    command.run([(toy(), "small")], rounds=1, output=file)
    assert "other processes took 50% of the cores" in capsys.readouterr().out
    assert "toy.sum, small †" in report.table(report.read(file))


def test_roofline_is_the_larger_limit():
    peaks = measure.Peaks({"float32": 10.0, "bfloat16": 40.0}, 2.0)
    assert measure.roofline(Floor(100, 4), peaks) == (10.0, "compute")
    assert measure.roofline(Floor(100, 4, "bfloat16"), peaks) == (2.5, "compute")
    assert measure.roofline(Floor(100, 40), peaks) == (20.0, "memory")


def test_selection():
    cases = [toy(), toy(name="toy.mean")]

    def names(pattern, sizes):
        return [f"{case.name}/{label}" for case, label in select(pattern, sizes, cases)]

    assert names("", "small") == ["toy.sum/small", "toy.mean/small"]
    assert names("mean", "full") == ["toy.mean/small", "toy.mean/large"]
    assert names("su*large", "full") == ["toy.sum/large"]
    assert names("sum/large", "small") == []


def test_unknown_pattern_lists_the_cases(capsys):
    assert command.main(["no such case"]) == 2
    message = capsys.readouterr().err
    assert "'no such case'" in message
    assert all(case.name in message for case in discover())


def test_list(capsys):
    assert command.main(["--list"]) == 0
    assert "ordered.on_lstm/paper" in capsys.readouterr().out


def test_bad_repeats(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--repeats", "0"])
    assert stop.value.code == 2
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err


def test_report_makes_a_table_and_a_plot(file, tmp_path, capsys):
    command.run([(toy(), "small"), (toy(), "large")], rounds=1, output=file)
    capsys.readouterr()
    picture = tmp_path / "bars.png"
    assert report.main([str(file), "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2 * 4
    assert len({line.count("|") for line in table}) == 1
    assert sum("toy.sum" in line for line in table) == 2
    assert sum("not installed" in line for line in table) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_takes_the_last_run(file):
    command.run([(toy(), "small")], rounds=1, output=file)
    again = [json.loads(line) for line in file.read_text().splitlines()[:2]]
    for row in again:
        row["environment"]["date"], row["median_seconds"] = "2999-01-01T00:00:00+00:00", 7.0
    with file.open("a") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in again)
    assert [row["median_seconds"] for row in report.read(file)] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ('{"case": "toy"}\n', "line 1 is no row"),
        ("[1]\n", "line 1 is no row"),
        ("{", "line 1 is no row"),
    ],
)
def test_report_refuses_other_files(tmp_path, capsys, text, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    assert report.main([str(file)]) == 2
    assert message in capsys.readouterr().err


def test_report_names_a_missing_file(tmp_path, capsys):
    assert report.main([str(tmp_path / "nothing.jsonl")]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.345, "2.35 s"),
        (0.0123, "12.3 ms"),
        (4e-6, "4 us"),
        (5e-9, "0.005 us"),
        (1234.5, "1234 s"),
    ],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(12, "12 B"), (1.5e3, "1.5 kB"), (2e9, "2 GB")])
def test_quantities(number, text):
    assert report.quantity(number, "B") == text


def test_the_tables_of_the_page_are_those_of_the_result_files():
    page = report.README.read_text()
    assert "<!-- summary -->" in page
    assert page.count("<!-- results: ") == len(list(report.RESULTS.glob("*.jsonl")))
    assert report.filled(page) == page, "stale: python -m benchmarks.report writes them anew"


def timed(ours, rival=None, *, others=0.0):
    """Rows of one case; of a pair of quartiles the median is the mean."""
    rows = {"zoo": ours} | ({"rival": rival} if rival else {})
    return [
        {"case": "toy", "size": "s", "program": name, "status": "ok", "others_share": others}
        | {"quartiles_seconds": quartiles, "median_seconds": sum(quartiles) / 2}
        for name, quartiles in rows.items()
    ]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (timed((0.9, 1.1)), timed((1.9, 2.1)), "| 2.00 |  | slower |"),
        (timed((0.9, 1.1)), timed((0.95, 1.15)), "| 1.05 |  | within noise |"),
        (timed((0.9, 1.1)), timed((0.4, 0.6)), "| 0.50 |  | faster |"),
        # A machine that is half as fast, which the rival says, is taken out.
        (timed((0.9, 1.1), (3, 5)), timed((1.9, 2.1), (7, 9)), "| 2.00 | 2.00 | within noise |"),
        (timed((0.9, 1.1), (3, 5)), timed((0.9, 1.1), (7, 9)), "| 1.00 | 2.00 | faster |"),
        (timed((0.9, 1.1)), timed((1.9, 2.1), others=0.5), "| toy, s † |"),
        (timed((0.9, 1.1)), [], "| ok | absent |"),
        ([], timed((0.9, 1.1)), "| absent | ok |"),
    ],
)
def test_comparison_knows_the_noise(before, after, line):
    assert line in report.comparison(before, after)


def test_list_takes_a_pattern(capsys):
    assert command.main(["--list", "ordered.on_lstm"]) == 0
    listed = capsys.readouterr().out
    assert "ordered.on_lstm/paper" in listed
    assert "smooth" not in listed
    assert command.main(["--scaling", "--list", "k"]) == 0
    assert "smooth.soft_top_k gradient, k" in capsys.readouterr().out.splitlines()


def test_every_curve_is_of_a_case_and_every_idea_has_one():
    sizes = {case.name: case.sizes for case in discover()}
    for curve in scaling.CURVES:
        needed = next(iter(sizes[curve.case].values()))
        assert {*curve.size, curve.grows} == set(needed), curve.name
        assert list(curve.values) == sorted({*curve.values})
    assert {curve.case.partition(".")[0] for curve in scaling.CURVES} >= {*zoo.IDEAS}


def test_exponents_are_those_of_the_times(file, monkeypatch, capsys):
    """Of a made-up clock: the square of the size."""

    def squares(calls, rounds):
        return [int(n) ** 2 for n in calls]

    monkeypatch.setattr(scaling, "best_seconds", squares)
    curve = scaling.Curve("toy.sum", "n", (2, 4, 8), "2", {})
    monkeypatch.setattr(scaling, "CURVES", (curve,))
    monkeypatch.setattr(scaling, "discover", lambda: [toy()])
    assert scaling.main("toy", 1, file) == 0
    (row,) = json.loads(file.read_text())
    assert (row["exponent"], row["error"]) == (pytest.approx(2), pytest.approx(0, abs=1e-6))
    assert row["memory_exponent"] > 0
    assert "| 2.00 ± 0.00 | 2 |" in capsys.readouterr().out
    assert scaling.main("nothing", 1, None) == 2
