"""What the head of a page says: from where the rows are, what made them, and counts that add up."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curator_dask.frames.record import ANSWERS, FILTERED, MADE_BY, TABLE, TEXT
from curator_dask.report.folder import Folder
from curator_dask.report.looking import Failure, Look
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.words import ranked

_SHOWN = 12  # files, folders or columns that a line names


@dataclass
class Head:
    """The head.

    Attributes
    ----------
    title, path
        Name of the output, and where it is.
    facts
        What is known of it, a name and a text each.
    flow
        From rows that went in to rows that have a vector: a sign, what, how many, and what it says besides.
    reasons
        Of rows without a vector: the reason, how many, and examples.
    remarks
        What was noticed of the tars.
    """

    title: str
    path: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    flow: list[tuple[str, str, int, str]] = field(default_factory=list)
    reasons: list[tuple[str, int, list[Failure]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def head_of(folder: Folder, look: Look, aside: Look, run: Mapping[str, Any] | None) -> Head:
    """The head of a page.

    Parameters
    ----------
    folder, look
        The output, and what its files say.
    aside
        What its failed rows say that lie beside it.
    run
        `SaveSummary.to_dict` of the run that made it; None where it is not known.
    """
    # An output is often called embeddings: the folder that it is in says which.
    title = "/".join(folder.path.rpartition("://")[2].strip("/").split("/")[-2:])
    head = Head(title, folder.path)
    summary = SaveSummary(folder.path)
    for record in folder.records:
        summary.add_remarks(record.remarks)
    head.remarks = [line.strip() for line in summary.remark_lines()]
    head.facts = [*_origin(folder), *_models(folder), *_time(run)]
    filtered = sum(fact["count"] for fact in summary.filtered.values())
    _count(head, folder, look, aside, filtered)
    reasons = look.reasons + aside.reasons
    for reason, count in ranked(reasons):
        some = [*look.examples.get(reason, []), *aside.examples.get(reason, [])]
        head.reasons.append((reason, count, some))
    return head


def _count(head: Head, folder: Folder, look: Look, aside: Look, filtered: int) -> None:
    rows, beside = folder.rows, sum(file.rows for file in folder.aside)
    total = rows + beside + filtered
    unknown = any(FILTERED in record.derived for record in folder.records)
    said = "and those that curator-dask filter has left out, which the files do not count" if unknown else ""
    head.flow.append(("", "rows in", total, said))
    if filtered:
        head.flow.append(("-", "left out by filters", filtered, ""))
    if beside:
        head.flow.append(("-", "failed, set aside", beside, "in the folder beside the output, .errors"))
    head.flow.append(("=", "rows of the output", rows, f"in {_count_of(len(folder.files), 'file')}"))
    if folder.vectors is not None:
        missing = rows - look.valid - look.broken
        head.flow.append(("-", "without a vector", missing, "why: see failures" if missing else ""))
        if look.broken:
            head.flow.append(("-", "vector not finite", look.broken, "NaN or infinite values in it"))
        share = f"{look.valid / rows:.1%} of the output" if rows else ""
        head.flow.append(("=", "with a vector", look.valid, share))


def _origin(folder: Folder) -> list[tuple[str, str]]:
    shards = sorted({record.url for record in folder.records if record.url})
    facts = [("output", folder.path)]
    if shards:
        places = _some(dict.fromkeys(posixpath.dirname(url) for url in shards))
        facts.append(("shards", f"{_count_of(len(shards), 'shard')} in {places}"))
    return facts


def _models(folder: Folder) -> list[tuple[str, str]]:
    made: dict[tuple[str, str], None] = {}
    for record in folder.records:
        for column, info in record.embeddings.items():
            told = [info.get("source"), info.get("model"), info.get("output"), info.get("dtype")]
            weights = str(info.get("weights", "")).removeprefix("sha256:")[:12]
            size = info.get("transform", {})
            pixels = size.get("size") if isinstance(size, dict) else None
            parts = [str(each) for each in dict.fromkeys(told) if each]
            parts += [f"{info['dim']} values"] if info.get("dim") else []
            parts += [f"at {' by '.join(map(str, pixels))} pixels"] if pixels else []
            made[column, ", ".join(parts) + (f", weights {weights}" if weights else "")] = None
    heads = {name: said for record in folder.records for name, said in record.scores.items()}
    scores = _some(dict.fromkeys(name for name, said in heads.items() if not {TABLE, MADE_BY} & {*said}))
    seen: dict[str, list[str]] = {}
    for name, said in heads.items():
        if MADE_BY in said:
            kind = {TEXT: "captions", ANSWERS: "answers"}.get(str(said[MADE_BY].get("output")), "classes")
            seen.setdefault(f"{kind} of {said['head']}", []).append(name)
    tables = (f"{name} of {said['head']}" for name, said in heads.items() if TABLE in said)
    given = _some(dict.fromkeys(tables))
    besides = (name for record in folder.records for name in record.derived if name not in record.scores)
    derived = _some(dict.fromkeys(besides))
    return [
        *made,
        *((what, _some(names)) for what, names in seen.items()),
        *([("scores", scores)] if scores else []),
        *([("joined", given)] if given else []),
        *([("made besides", derived)] if derived else []),
    ]


def _time(run: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    here = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    if run is None:
        said = "not in the files: give the summary of the run (embed --json FILE, report --summary FILE)"
        return [("time", said), ("versions", f"of this report: {here}")]
    seconds, rate = float(run.get("seconds", 0.0)), float(run.get("images_per_second", 0.0))
    start = float(run.get("startup_seconds", 0.0))
    time = f"{seconds:,.1f} s, {start:,.1f} s of it start-up, then {rate:,.1f} images/s"
    versions = ", ".join(f"{name} {version}" for name, version in dict(run.get("versions", {})).items())
    return [("time", time), ("versions", versions or here)]


def _count_of(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{', '.join(listed[:_SHOWN])}{more}"
