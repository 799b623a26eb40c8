"""Parts of what comes after a run over images (score, retry, export): each its own files or tars, together one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import dask
import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, read_output, write_dataset
from test_export import members_in
from test_heads import red_head
from test_parts import digests, save
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, OutputError
from curator_dask.image.classifiers import HeadClassifier, score_output
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs import lock, mixing
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.lock import LOCK_NAME, PARTS_FOLDER, RunLock
from curator_dask.outputs.packing import PackShard
from curator_dask.runs.parts import Part, part_of
from curator_dask.tables import join_output
from curator_dask.text import SameCaptions
from curator_dask.words import some_of_these

SHARDS, SAMPLES = 6, 4


def test_of_many_columns_those_are_named_that_are_like_the_one_asked_for():
    names = [f"feature_{number}" for number in range(500)]
    table = pa.table({name: [1] for name in (*names, "width")})
    with pytest.raises(ConfigError) as raised:
        ExportOptions(columns=["feature_", "widht"]).check_columns(table, table.column_names)
    said = str(raised.value)
    assert said.endswith(" and 489 others") and "'feature_0'" in said and len(said) < 400
    assert some_of_these(["a", "b"], "c") == "['a', 'b']"
    assert some_of_these([*names, "width"], "widht").startswith("['width', ")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """An output of embed; each test copies what it changes."""
    folder = tmp_path_factory.mktemp("later")
    write_dataset(folder / "data", SHARDS, SAMPLES)
    with dask.config.set(scheduler="sync"):
        save(folder / "data", folder / "rows")
    return folder / "rows"


@pytest.fixture
def copied(rows, tmp_path):
    return Path(shutil.copytree(rows, tmp_path / "rows"))


def export_held(rows, out, part, go, options):
    """In a process of its own: before its second tar it waits for a file."""
    put, packed = PackShard._pack, []

    def pack(self, shard, name):
        while packed and not Path(go).exists():
            time.sleep(0.01)
        packed.append(name)
        return put(self, shard, name)

    PackShard._pack = pack
    mixing.WORTH_IT = 0  # rows are laid down, as of an export of many tars
    with dask.config.set(scheduler="sync"):
        export_output(rows, out, options, part=part)


def test_parts_of_an_export_at_once_and_one_killed_write_what_one_export_writes(rows, tmp_path):
    """To the byte: tars, indexes, rows, manifests, sizes and card."""
    out, go = tmp_path / "out", tmp_path / "go"
    options = ExportOptions(
        samples_per_shard=2, shuffle=7, keys="sequential", splits={"val": 0.25}, card={"license": "mit"}
    )
    jobs = [
        forked.start(export_held, rows, out, (number, 3), go, options, log=tmp_path / "log")
        for number in range(3)
    ]
    end = time.monotonic() + 60
    while len(list(out.rglob("*.tar"))) < 3:  # all are at work
        assert time.monotonic() < end and all(job.is_alive() for job in jobs), (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.kill(jobs[1].pid, signal.SIGKILL)
    go.touch()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, -signal.SIGKILL, 0], (tmp_path / "log").read_text()
    assert not (out / "sizes.json").exists() and not (out / "README.md").exists()
    with dask.config.set(scheduler="sync"):
        again = export_output(rows, out, options, part="1/3")
        mine, every = again.part["shards"], again.part["all_shards"]
        assert (again.written, again.skipped) == (mine - 1, 1)
        assert f"part 1/3, {mine} of {every} tars, " in str(again) and "in all 24 samples" in str(again)
        assert export_output(rows, out, options, part="1/3").written == 0
        rest = export_output(rows, out, options)
        assert (rest.written, rest.skipped, rest.part) == (0, every, None)
        export_output(rows, tmp_path / "whole" / "out", options)
    assert digests(out) == digests(tmp_path / "whole" / "out")
    for name in ("manifest", "samples"):
        assert digests(tmp_path / "out.export" / name) == digests(tmp_path / "whole" / "out.export" / name)
    assert json.loads((out / "train" / "sizes.json").read_text())
    assert not [path for folder in (out, tmp_path / "out.export") for path in folder.rglob(".*")]
    assert not (tmp_path / "out.export" / "mixed").exists()


@pytest.mark.usefixtures("in_this_process")
class TestExport:
    def test_every_part_has_its_own_tars(self, rows, tmp_path):
        """Also of Parquet with the images, whose names say how many there are."""
        for options in (
            ExportOptions(samples_per_shard=3),
            ExportOptions(format="parquet", samples_per_shard=4, shuffle=1),
        ):
            out, whole = tmp_path / options.format, tmp_path / f"whole-{options.format}"
            export_output(rows, whole, options)
            files, suffix = 0, "tar" if options.format == "webdataset" else "parquet"
            for number in range(5):
                summary = export_output(rows, out, options, part=(number, 5))
                assert (summary.written, summary.kept) == (summary.part["shards"], SHARDS * SAMPLES)
                files += summary.written
                assert len([*out.rglob(f"*.{suffix}")]) == files
            export_output(rows, out, options)
            assert digests(out) == digests(whole)
        assert len(members_in(tmp_path / "webdataset")) == 8

    def test_other_rows_or_settings_are_refused(self, rows, copied, tmp_path):
        out, options = tmp_path / "out", ExportOptions(samples_per_shard=3)
        export_output(rows, out, options, part=(0, 2))
        before = digests(out)
        other = ExportOptions(samples_per_shard=2)
        for part in ((1, 2), (0, 2), None):
            with pytest.raises(OutputError, match="was made of other samples, or by other settings"):
                export_output(rows, out, other, part=part)
        (copied / "00000.parquet").unlink()
        with pytest.raises(OutputError, match="was made of other samples"):
            export_output(copied, out, options, part=(1, 2))
        assert digests(out) == before
        # With overwrite they are all anew, each by its part; the whole finds them all.
        for number in range(2):
            export_output(copied, out, ExportOptions(samples_per_shard=3, overwrite=True), part=(number, 2))
        assert export_output(copied, out, options).written == 0
        export_output(copied, tmp_path / "whole", options)
        assert digests(out) == digests(tmp_path / "whole")

    def test_beside_another_part_at_work(self, rows, tmp_path):
        out, options = tmp_path / "out", ExportOptions(samples_per_shard=3)
        out.mkdir()
        with RunLock(str(out), part=Part(1, 2)) as held:
            held.declare({"export": "another"})
            with pytest.raises(OutputError, match="part 1/2 of an export is at work there, of other rows or"):
                export_output(rows, out, options, part=(0, 2))
            with pytest.raises(OutputError, match="part 1/2 of a run is writing there"):
                export_output(rows, out, options)
            assert [path.name for path in out.iterdir()] == [PARTS_FOLDER]
            held.declare({})
            assert export_output(rows, out, options, part=(0, 2)).written

    def test_what_has_no_parts(self, rows, tmp_path):
        for given in ({"append": True}, {"dry_run": True}):
            with pytest.raises(ConfigError, match="parts write the tars of a new export"):
                export_output(rows, tmp_path / "out", ExportOptions(**given), part=(0, 2))
        done = CliRunner().invoke(
            app, ["export", str(rows.parent / "data"), str(tmp_path / "o"), "--part", "0/2"]
        )
        assert done.exit_code == 2 and "give what embed, score or filter wrote" in done.output.replace(
            "\n", " "
        )
        assert not [*tmp_path.glob("o*")]


@pytest.mark.usefixtures("in_this_process")
class TestFiles:
    def test_scores_in_parts_are_those_of_one_run(self, rows, copied, tmp_path):
        heads = [HeadClassifier(red_head(tmp_path), "red"), ImageStatistics(["phash"])]
        score_output(rows, heads, tmp_path / "whole")
        score_output(rows, heads, tmp_path / "elsewhere", part=(0, 2))
        taken = {path.stem for path in (tmp_path / "elsewhere").glob("*.parquet")}
        assert taken == {f"{each:05d}" for each in range(SHARDS) if part_of(f"{each:05d}", 2) == 0}
        done = score_output(rows, heads, tmp_path / "elsewhere", part=(1, 2))
        assert "part 1/2: 3 of 6 shards" in str(done)
        assert score_output(rows, heads, tmp_path / "elsewhere").skipped == SHARDS
        assert digests(tmp_path / "elsewhere") == digests(tmp_path / "whole")
        score_output(copied, heads, part=(0, 2))
        # Another head of the same name is refused by a part of which no file has any, at work or not.
        blue = tmp_path / "blue"
        blue.mkdir()
        other = HeadClassifier(red_head(blue, channel=1), "red")
        before = digests(copied)
        with pytest.raises(OutputError, match="has a column 'red' by the head"):
            score_output(copied, [other], part=(1, 2))
        with RunLock(str(copied), part=Part(0, 2)) as held:
            held.declare({"red": {"head": "x", "recipe": "y"}})
            with pytest.raises(
                OutputError, match="column 'red' of part 0/2, which is at work, was made with"
            ):
                score_output(copied, heads, part=(1, 2))
        assert digests(copied) == before
        with pytest.raises(ConfigError, match="counts the rows of all parts together"):
            score_output(copied, [SameCaptions()], part=(1, 2))
        score_output(copied, heads, part=(1, 2))
        assert {path.name: read_output(path.parent).schema.names for path in copied.glob("*.parquet")}
        assert read_output(copied).equals(read_output(tmp_path / "whole"))

    def test_failed_rows_are_tried_in_parts(self, rows, tmp_path):
        for name in ("whole", "parts"):
            save(rows.parent / "data", tmp_path / name, reader=lambda: ColourReader(max_pixels=10))
        ColourReader().retry(tmp_path / "whole")
        for number in range(2):
            summary = ColourReader().retry(tmp_path / "parts", part=(number, 2))
            assert (summary.rows, summary.good) == (3 * SAMPLES, 1.0)
            assert summary.part == {"number": number, "of": 2, "shards": 3, "all_shards": 6}
        assert ColourReader().retry(tmp_path / "parts").rows == 0
        assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def taken_over(folder, name):
    """Workers that are long in coming: meanwhile another run takes this one for dead."""
    note = json.dumps({"run": "x", "host": "elsewhere", "pid": 1, "since": 0, "seen": time.time()})

    @contextmanager
    def workers():
        for _ in range(10):  # of which a renewal that has just looked may write over the first
            Path(folder, name).write_text(note)
            time.sleep(0.02)
        yield None

    return workers


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("what", ["score", "join", "filter", "retry", "export", "export --part"])
def test_who_was_taken_for_dead_ends(what, rows, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    out, note = tmp_path / "out", LOCK_NAME
    if what in ("score", "join", "retry"):
        out = copied
    if what == "export --part":
        note = f"{PARTS_FOLDER}/0-of-1.json"
    if what == "retry":
        shutil.rmtree(out)
        save(rows.parent / "data", out, reader=lambda: ColourReader(max_pixels=10))
    head = HeadClassifier(red_head(tmp_path), "red")
    table = tmp_path / "more.parquet"
    pq.write_table(pa.table({"key": read_output(rows)["key"], "more": [1.0] * SHARDS * SAMPLES}), table)
    small = ExportOptions(samples_per_shard=3)
    run = {
        "score": lambda workers: score_output(out, [head], workers=workers),
        "join": lambda workers: join_output(out, table, workers=workers),
        "filter": lambda workers: filter_output(copied, out, where="width > 0", workers=workers),
        "retry": lambda workers: ColourReader().retry(out, workers=workers),
        "export": lambda workers: export_output(rows, out, small, workers=workers),
        "export --part": lambda workers: export_output(rows, out, small, workers=workers, part=(0, 1)),
    }[what]
    before = digests(out) if out.exists() else {}
    with pytest.raises(OutputError, match=r"process 1 on elsewhere.* no sign of life .* and ends"):
        run(taken_over(out, note))
    after = digests(out)
    written = [name for name, digest in after.items() if before.get(name) != digest and name != note]
    assert len(written) <= 1, written
    assert "elsewhere" in (out / note).read_text()  # it is the other's
    (out / note).unlink()
    run(nullcontext)
