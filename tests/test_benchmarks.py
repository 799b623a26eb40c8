"""The benchmarks run, and write what they promise; how fast anything is, is not looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import (
    bare,
    ceiling,
    compare,
    concepts,
    decode_scale,
    dedup,
    doors,
    end_to_end,
    export,
    harness,
    links,
    loader,
    one_pass,
    random_clip,
    recall,
    scheduler,
    smaller,
    statistic_costs,
)
from benchmarks.peers import check, tuning
from benchmarks.peers import run as peer_run
from benchmarks.photographs import make_photographs
from curator_dask.frames.columns import vectors_to_list
from curator_dask.models.compiling import has_batch_norm

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


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few photographs are not decoded again and again for a steady figure, and processes start at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "DECODED", 1)
        patch.setattr(harness, "START_METHOD", "forkserver")
        yield


def check_cases(result, names):
    assert list(result["cases"]) == names
    for name, case in result["cases"].items():
        for figure in ("items_per_second", "seconds", "cpu_ms_per_item"):
            values = case[figure]
            assert len(values["runs"]) == result["settings"]["repeats"]
            assert 0 <= values["min"] <= values["median"] <= values["max"]
            # The system counts CPU time in hundredths of a second: the null model alone may take none.
            assert values["min"] > 0 or (figure == "cpu_ms_per_item" and name == "model, 1x1")
        assert case["peak_rss_mib"] > 100


def check_ratio(result, name, top, *bottom):
    """A ratio is that of the rates in the same round, not of two medians."""
    rates = [result["cases"][case]["items_per_second"]["runs"] for case in (top, *bottom)]
    expected = [rate / (1 / sum(1 / value for value in others)) for rate, *others in zip(*rates, strict=True)]
    assert result["ratios"][name]["runs"] == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_loader(tmp_path):
    result = run(loader, tmp_path / "loader.json", "--images", "24")
    kinds = ["crop region", "usual", "torch", "whole"]
    check_cases(result, ["Loader, 1 thread", *(f"DALI, {kind}, 1 thread" for kind in kinds)])
    for kind in kinds:
        name = f"DALI, {kind}, 1 thread"
        check_ratio(result, f"Loader ÷ {name}", "Loader, 1 thread", name)


def test_end_to_end(tmp_path):
    result = run(end_to_end, tmp_path / "end.json", "--null-model", "--layouts", "1x1", "--images", "32")
    cases = [f"{name}, 1x1" for name in ("end to end", "decode", "decode in DALI alone", "model")]
    check_cases(result, cases)
    ours, decode, in_dali, model = cases
    check_ratio(result, "end to end ÷ ceiling, 1x1", ours, decode, model)
    check_ratio(result, "end to end ÷ decode, 1x1", ours, decode)
    check_ratio(result, "end to end ÷ decode in DALI alone, 1x1", ours, in_dali)


def test_export(tmp_path):
    result = run(export, tmp_path / "export.json")
    assert list(result["cases"]) == ["cp", "cp, synced", "webdataset", "export", "export, 10 % kept"]
    for name in ("cp", "cp, synced", "webdataset"):
        check_ratio(result, f"export ÷ {name}", "export", name)


@pytest.mark.slow
def test_smaller(tmp_path):
    result = run(smaller, tmp_path / "smaller.json")
    check_ratio(result, "export ÷ Pillow", "export", "Pillow")
    assert result["psnr"]["pixels"] > 45 > result["psnr"]["files"] > 25


def test_decode_scale(tmp_path):
    result = run(decode_scale, tmp_path / "scale.json", "--images", "2")
    for kind in ("1600x1200, enlarged", "1600x1200, montage"):
        check_ratio(result, kind, f"{kind}, fast", f"{kind}, exact")
    assert len(result["notes"]) == 2


def test_tables(tmp_path):
    """The README's tables come from the JSON; what stands around them stays."""
    cases = {"one": {"items_per_second": harness.summary([9.0, 10.0, 12.0])}}
    cases["one"] |= {"cpu_ms_per_item": harness.summary([3.0]), "peak_rss_mib": 250.0}
    described = harness.machine()
    result = {"script": "x", "device": "cpu", "machine": described, "what": "This.", "notes": ["a note"]}
    (tmp_path / "x.json").write_text(json.dumps({**result, "table": harness.case_rows(cases)}))
    (tmp_path / "x.svg").write_text("<svg/>")
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nbelow\n")
    for _ in range(2):
        harness.write_tables(readme, tmp_path)
    lines = readme.read_text().splitlines()
    assert lines[0] == "above" and lines[-1] == "below" and "old" not in lines
    assert "| one | 10 | 9 to 12 | 3 | 250 |" in lines and lines.count("- a note") == 1
    assert lines.count("![x](x.svg)") == 1


def test_machine_names_no_host():
    import socket

    described = json.dumps(harness.machine())
    assert socket.gethostname() not in described and str(harness.HERE) not in described


def test_photographs_are_the_same_each_time(tmp_path):
    one, other = (make_photographs(6, 2, tmp_path / name) for name in "ab")
    for name in ("00000.tar", "00001.tar"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_doors(tmp_path):
    result = run(doors, tmp_path / "doors.json", "--model", "null", "--layout", "1x1", "--repeats", "1")
    check_cases(result, ["stages, null", "dataset, null"])
    check_ratio(result, "stages ÷ dataset, null", "stages, null", "dataset, null")
    times = [case["cpu_ms_per_item"]["runs"][0] for case in result["cases"].values()]
    found = result["ratios"]["CPU time, stages ÷ dataset, null"]["runs"]
    assert found == [pytest.approx(times[0] / times[1], rel=0.01)]
    same = result["compared"]["null"]
    assert (same["rows"], same["files"]) == (32, 2)
    assert same["neighbours"] < 0.99 < 0.9999 < same["least_cosine"]


def test_doors_of_a_clip(tmp_path, in_this_process, monkeypatch):
    """Both doors, and the bare model, have the CLIP that the benchmark makes."""
    monkeypatch.setattr(random_clip.tempfile, "gettempdir", lambda: str(tmp_path))
    load = doors.load_of("clip-tiny", doors.options_of_command_line(["--quick"]))
    source = make_photographs(12, 2, tmp_path / "shards")
    for door in doors.DOORS:
        assert doors.run(door, load, str(source), str(tmp_path / door)) == 12
    found = doors.compare(*(tmp_path / door for door in doors.DOORS))
    assert found["rows"] == 12 and found["least_cosine"] > 0.99999
    folder = random_clip.clip_folder("clip-tiny")
    assert random_clip.forward(str(folder), 4, 9, 0, 1) == 8
    tower, _ = random_clip._tower(str(folder), 4)
    assert tower.config.projection_dim == len(
        pq.read_table(tmp_path / "stages/00000.parquet")["image_embedding"][0]
    )


ROWS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
KEYS = [f"{number:03d}" for number in range(8)]


def write_rows(path, keys=KEYS, vectors=ROWS, missing=(), **columns):
    path.parent.mkdir(exist_ok=True)
    column = vectors_to_list(vectors, ~np.isin(np.arange(len(keys)), missing))
    pq.write_table(pa.table({"key": keys, **columns, "image_embedding": column}), path)


def test_a_bare_model_that_is_folded_runs_in_the_precision_of_the_model():
    plain, folded = (bare._model("test_efficientnet", False, 2, False, done) for done in (False, True))
    assert has_batch_norm(plain[0]) and not has_batch_norm(folded[0])
    assert plain[2] and folded[2], "bf16 is too coarse for it, also when nothing shows that any more"


def test_doors_compares_what_they_wrote(tmp_path):
    write_rows(tmp_path / "one/00000.parquet")
    write_rows(tmp_path / "same/00000.parquet")
    assert doors.compare(tmp_path / "one", tmp_path / "same")["largest_difference"] == 0
    order = [1, 0, *range(2, 8)]
    faults = {
        "the same files": {"path": "00001.parquet"},
        "the same columns": {"caption": KEYS},
        "the rows of the two doors differ, or their order": {"keys": [KEYS[row] for row in order]},
        "the vectors of the two doors differ": {"vectors": ROWS[order]},
        "1 vectors are missing": {"missing": [3]},
    }
    for number, (message, changes) in enumerate(faults.items()):
        folder = tmp_path / str(number)
        write_rows(folder / changes.pop("path", "00000.parquet"), **changes)
        with pytest.raises(SystemExit, match=message):
            doors.compare(tmp_path / "one", folder)
    write_rows(tmp_path / "alike/00000.parquet", vectors=np.ones_like(ROWS))
    with pytest.raises(SystemExit, match="all vectors are alike"):
        doors.compare(tmp_path / "alike", tmp_path / "alike")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What is written after a round, and after another in which the peer has no part; then the run is cut off.

    With curator_dask alone: the peers need environments of their own.
    """
    path = tmp_path_factory.mktemp("compare") / "compare.json"
    written = []
    write = compare.write_result

    def cut_off(*arguments):
        wrote = write(*arguments)
        written.append(json.loads(path.read_text()))
        if len(written) == 2:
            raise KeyboardInterrupt
        return wrote

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compare, "write_result", cut_off)
        rounds = ["--repeats", "3", "--at-most", "curator-dask=1"]
        run(compare, path, "--peers", "curator-dask", "--images", str(compare.SMALL[0] + 16), *rounds)
    return written, path


@pytest.mark.slow
def test_compare(compared):
    images = compare.SMALL[0] + 16
    (result, _), path = compared
    assert set(result["machine"]) == MACHINE
    assert result["quick"] and result["device"] == "cpu"
    assert result["left_out"] == {}
    found = result["peers"]["curator-dask"]
    (rate,) = found["images_per_second"]["runs"]
    (decode,), (in_dali,), (model,) = (each["runs"] for each in result["bare"].values())
    layout = "{workers}x{threads}".format(**found["settings"])
    names = [f"{name}, {layout}" for name in ("decode", "decode in DALI alone", "model")]
    assert list(result["bare"]) == names
    ratios = {name: value["median"] for name, value in result["ratios"].items()}
    assert ratios == pytest.approx(
        {
            "curator-dask ÷ ceiling": rate * (1 / decode + 1 / model),
            f"curator-dask ÷ bare {names[0]}": rate / decode,
            f"curator-dask ÷ bare {names[1]}": rate / in_dali,
        },
        rel=0.01,
    )
    assert found["fidelity"]["rows"] == images and found["fidelity"]["least_cosine"] > 0.9999
    for figure in compare.FIGURES:
        assert found[figure]["median"] > 0
    assert found["peak_mib"] > 100 and found["versions"]["torch"]
    assert "curator-dask" in path.with_suffix(".svg").read_text()
    assert result["table"][1][0] == "curator-dask"


@pytest.mark.slow
def test_compare_keeps_every_round(compared):
    """A run that is cut off leaves the rounds that it did; a peer that has had its own takes part no more."""
    _, path = compared
    result = json.loads(path.read_text())
    assert result["settings"]["repeats"] == 2
    assert len(result["peers"]["curator-dask"]["images_per_second"]["runs"]) == 1
    assert result["table"][1][0] == "curator-dask (the first 1 rounds)"
    assert {len(rates["runs"]) for rates in result["bare"].values()} == {2}
    assert {len(ratio["runs"]) for ratio in result["ratios"].values()} == {1}


def test_settings_of_peers(tmp_path):
    """Those near to the fastest are tried again, with more; a result knows which settings were found where."""
    rates = {"a": [10.0, 30.0], "b": [20.0], "c": [19.0, 21.0], "d": [18.0, 22.0], "e": [17.5, 20.0]}
    rates["b"].append(19.0)
    asked = []

    def rate(settings, images):
        asked.append((settings["name"], images))
        if settings["name"] == "broken":
            raise peer_run.PeerError("no")
        return rates[settings["name"]][images == 100]

    found = tuning.tune([{"name": name} for name in [*rates, "broken"]], rate, 10, 100)
    assert sorted(asked) == sorted([*((name, 10) for name in [*rates, "broken"]), *((n, 100) for n in "bcd")])
    assert found["failed"] == {'{"name": "broken"}': "no"}
    assert tuning.fastest(found["tried"]) == {"name": "d"} and tuning.fastest({}) is None

    path = tmp_path / "result.json"
    peer = {**found, "tuned_with": "null, 4 shards", "settings": {}}
    other = {"tried": {}, "settings": {}}
    result = {"machine": {"cpu": "X"}, "settings": {"load": "null"}, "peers": {"one": peer, "two": other}}
    path.write_text(json.dumps(result))
    assert tuning.settings_of([path], "X") == {("null", "one"): {**found, "tuned_with": "null, 4 shards"}}
    with pytest.raises(SystemExit, match=r"this machine \(Y\), found one of X"):
        tuning.settings_of([path], "Y")
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"expected a result of benchmarks\.compare"):
        tuning.settings_of([path], "X")


def test_compare_leaves_out_what_fails(tmp_path, monkeypatch):
    """A peer that ends is reported with its last error, and its descendants are ended."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "broken.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True, file=open('pid', 'w'))\n"
        "time.sleep(1)  # so that the child is seen\n"
        "raise ValueError('nothing works')\n"
    )
    monkeypatch.setattr(peer_run, "SCRIPTS", scripts)
    broken = peer_run.Peer("broken", "none", True, lambda count: [{}])
    with (
        pytest.raises(peer_run.PeerError, match=r"ended after .*ValueError: nothing works"),
        peer_run.Run(broken, Path(sys.executable), {}, {"threads": 1}, tmp_path / "run"),
    ):
        pass
    assert not psutil.pid_exists(int((tmp_path / "run/pid").read_text()))


def test_compare_checks_vectors(tmp_path):
    folder = make_photographs(8, 2, tmp_path / "shards")
    keys = [key for shard in check.keys_of(folder).values() for key in shard]
    expected = dict(zip(keys, ROWS, strict=True))
    write_rows(tmp_path / "good/a.parquet", keys[:5], ROWS[:5] * 7)
    write_rows(tmp_path / "good/b.parquet", keys[5:], ROWS[5:])
    assert check.check(tmp_path / "good", folder, expected) == {
        "rows": 8,
        "least_cosine": 1.0,
        "mean_cosine": 1.0,
    }
    # NeMo Curator names rows by position, clip-retrieval has its vectors in another file.
    ids = [f"{shard}_{number:06d}" for shard in ("00000", "00001") for number in range(4)]
    (tmp_path / "nemo").mkdir()
    pq.write_table(pa.table({"image_id": ids, "embedding": ROWS.tolist()}), tmp_path / "nemo/x.parquet")
    for name in ("metadata", "img_emb"):
        (tmp_path / "clip" / name).mkdir(parents=True)
    np.save(tmp_path / "clip/img_emb/img_emb_0.npy", ROWS.astype(np.float16))
    pq.write_table(pa.table({"image_path": keys}), tmp_path / "clip/metadata/metadata_0.parquet")
    for name in ("nemo", "clip"):
        assert check.check(tmp_path / name, folder, expected)["least_cosine"] > 0.999
    faults = {
        "1 missing, 0 unknown .*, 0 twice": {"keys": keys[1:], "vectors": ROWS[1:]},
        "1 missing, 1 unknown": {"keys": ["other", *keys[1:]]},
        "1 missing, 0 unknown .*, 1 twice": {"keys": [keys[1], *keys[1:]]},
        "1 vectors are missing": {"keys": keys, "missing": [3]},
        "least cosine": {"keys": [keys[1], keys[0], *keys[2:]]},
    }
    for number, (message, changes) in enumerate(faults.items()):
        write_rows(tmp_path / str(number) / "a.parquet", **changes)
        with pytest.raises(check.CheckError, match=message):
            check.check(tmp_path / str(number), folder, expected)


def test_dedup(tmp_path):
    result = run(dedup, tmp_path / "result.json", "--rows", "600")
    assert {"products", "dedup"} <= {*result["cases"]}
    assert result["recall"]["dedup"] >= 0.99
    assert min(result["ratios"]["dedup ÷ products"]["runs"]) > 0


@pytest.mark.slow
def test_one_pass(tmp_path):
    result = run(one_pass, tmp_path / "pass.json")
    ways = ("one pass", "one after the other")
    check_cases(result, [f"{kind}, {way}" for kind in ("null", "real") for way in ways])


@pytest.mark.slow
def test_beside_one_model(tmp_path):
    result = run(one_pass, tmp_path / "beside.json", "--beside")
    check_cases(result, [*one_pass.BESIDE])
    assert len(result["ratios"]) == len(one_pass.BESIDE) - 1


@pytest.mark.slow
def test_statistic_costs():
    for found in statistic_costs.main(["--quick"]).values():
        assert min(found.values()) >= 0 and {"decode", "phash", "all of pixels"} <= {*found}


@pytest.mark.slow
def test_costs_of_links():
    assert min(links.main(["--quick"]).values()) > 0


@pytest.mark.slow
def test_costs_of_concepts():
    assert min(concepts.main(["--quick"]).values()) >= 0


@pytest.mark.slow
def test_scheduler(tmp_path):
    (figures,) = run(scheduler, tmp_path / "scheduler.json")["cases"].values()
    assert 0 < figures["scheduler_busy"]["median"] < 1
    assert figures["tasks_a_second"]["median"] > 0


@pytest.mark.slow
def test_recall_by_brute_force():
    found = recall.main(["--quick"])
    assert [(name, eps) for name, eps, _ in found] == [
        (name, eps) for name in ("heavy", "copies") for eps in (0.03, 0.1)
    ]
    for _, _, one in found:
        assert one.clusters == 40 and one.pairs > 200
        assert one.recall >= 0.99 and one.without == 0
        assert one.removed >= 0.99 * one.greedy > 0
