"""The benchmarks run, and write what they promise; how fast anything is, is not looked at."""

from __future__ import annotations

import json

import pytest

from benchmarks import end_to_end, harness, loader, many_shards, memory
from benchmarks.photographs import make_photographs

MACHINE = {
    "cpu",
    "cores",
    "memory_gib",
    "gpus",
    "system",
    "python",
    "versions",
    "commit",
    "load_average_at_start",
}


def run(script, path, *arguments):
    script.main(["--quick", "--out", str(path), *arguments])
    result = json.loads(path.read_text())
    assert set(result["machine"]) == MACHINE
    assert result["quick"] and result["device"] == "cpu"
    return result


def check_cases(result, names):
    assert list(result["cases"]) == names
    for case in result["cases"].values():
        for figure in ("items_per_second", "seconds", "cpu_ms_per_item"):
            values = case[figure]
            assert len(values["runs"]) == result["settings"]["repeats"]
            assert 0 < values["min"] <= values["median"] <= values["max"]
        assert case["peak_rss_mib"] > 100


def check_ratio(result, name, top, *bottom):
    """A ratio is that of the rates in the same round, not of two medians."""
    rates = [result["cases"][case]["items_per_second"]["runs"] for case in (top, *bottom)]
    expected = [rate / (1 / sum(1 / value for value in others)) for rate, *others in zip(*rates, strict=True)]
    assert result["ratios"][name]["runs"] == pytest.approx(expected, rel=0.01)


def test_loader(tmp_path):
    result = run(loader, tmp_path / "loader.json")
    kinds = ["crop region", "usual", "torch", "whole"]
    check_cases(result, ["Loader, 1 thread", *(f"DALI, {kind}, 1 thread" for kind in kinds)])
    for kind in kinds:
        name = f"DALI, {kind}, 1 thread"
        check_ratio(result, f"Loader ÷ {name}", "Loader, 1 thread", name)


def test_end_to_end(tmp_path):
    result = run(end_to_end, tmp_path / "end.json", "--null-model", "--layouts", "1x1")
    check_cases(result, ["end to end, 1x1", "decode, 1x1"])
    check_ratio(result, "end to end ÷ ceiling, 1x1", "end to end, 1x1", "decode, 1x1")


def test_many_shards(tmp_path):
    result = run(many_shards, tmp_path / "many.json", "--shards", "40")
    case = result["cases"]["40"]
    assert set(many_shards.STEPS) < set(case)
    assert case["tars_opened"]["max"] == 0
    assert case["peak_rss_mib"]["median"] >= case["rss_mib_build"]["median"] > 50


def test_tables(tmp_path):
    """The README's tables come from the JSON; what stands around them stays."""
    cases = {"one": {"items_per_second": harness.summary([9.0, 10.0, 12.0])}}
    cases["one"] |= {"cpu_ms_per_item": harness.summary([3.0]), "peak_rss_mib": 250.0}
    described = harness.machine()
    result = {"script": "x", "device": "cpu", "machine": described, "what": "This.", "notes": ["a note"]}
    (tmp_path / "x.json").write_text(json.dumps({**result, "table": harness.case_rows(cases)}))
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nbelow\n")
    for _ in range(2):
        harness.write_tables(readme, tmp_path)
    lines = readme.read_text().splitlines()
    assert lines[0] == "above" and lines[-1] == "below" and "old" not in lines
    assert "| one | 10 | 9 to 12 | 3 | 250 |" in lines and lines.count("- a note") == 1


def test_machine_names_no_host():
    import socket

    described = json.dumps(harness.machine())
    assert socket.gethostname() not in described and str(harness.HERE) not in described


def test_photographs_are_the_same_each_time(tmp_path):
    one, other = (make_photographs(6, 2, tmp_path / name) for name in "ab")
    for name in ("00000.tar", "00001.tar"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_memory(tmp_path):
    result = run(memory, tmp_path / "memory.json", "--shards", "1", "2", "--workers", "1")
    for count in ("1", "2"):
        case = result["cases"][count]
        assert case["images"]["runs"] == [8 * int(count)]
        assert case["peak_rss_mib"]["median"] > 100
    ((name, ratio),) = result["ratios"].items()
    peaks = [result["cases"][count]["peak_rss_mib"]["runs"][0] for count in ("2", "1")]
    assert name == "peak of 2 shards ÷ that of 1"
    assert ratio["runs"] == [pytest.approx(peaks[0] / peaks[1], rel=0.01)]
