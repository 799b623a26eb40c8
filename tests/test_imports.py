"""What importing the package loads, and who may import whom."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import curator_dask

PACKAGE = Path(curator_dask.__file__).parent
HEAVY = ("torch", "nvidia", "cudf", "timm", "transformers", "dask.dataframe", "pandas")

# The house of docs/architecture.md, from the top: a file imports what stands below it, or beside it in its own entry.
LAYERS = (
    "__main__",
    "cli",
    "testing",
    "utils",
    "curation_of_vectors",
    "curation",
    "recipe_steps",
    "recipe",
    "pipeline",
    "stages",
    "compare",
    "info",
    "labelling",
    "browsing",
    "report",
    "retrieval",
    "importing",
    "removing",
    "balancing",
    "image.embedders",
    "text",
    "image.fitting",
    "image.asking",
    "image.captioning",
    "image.detection",
    "image.classifiers",
    "image.statistics",
    "tables",
    "fetching",
    "crawls",
    "indexing",
    "dedup",
    "datasets",
    "outputs",
    "checks",
    "runs",
    "rows",
    "models",
    "frames",
    "decode",
    "webdataset",
    "cluster",
    "dashboard",
    "storage",
    "s3_requests",
    "patience",
    "cache",
    "fingerprint",
    "settings",
    "presets",
    "console",
    "notebook",
    "meter",
    "collector",
    "threads",
    "tasks",
    "backend",
    "holding",
    "tokens",
    "arguments",
    "words",
    "errors",
)
# The only modules that may name the GPU libraries.
GPU_MODULES = ("backend", "cluster.client", "cluster.device", "cluster.gpu", "cluster.local")


def find_modules(package: Path) -> dict[str, Path]:
    """Module names without the package's own (its root is ''), with their files."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def below_or_same(name: str, folder: str) -> bool:
    return folder == "" or name == folder or name.startswith(folder + ".")


def layer(name: str) -> int | None:
    """Place in LAYERS, 0 at the top; of a folder of layers, the lowest's. None: not placed."""
    inside = [at for at, entry in enumerate(LAYERS) if below_or_same(name, entry)]
    around = [at for at, entry in enumerate(LAYERS) if below_or_same(entry, name)]
    return inside[0] if inside else max(around, default=None)


def import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import statement of a file, those in functions and those for the type checker too."""
    return [node for node in nodes_in(path) if isinstance(node, ast.Import | ast.ImportFrom)]


def attribute_nodes(path: Path) -> list[ast.Attribute]:
    return [node for node in nodes_in(path) if isinstance(node, ast.Attribute)]


@functools.cache
def nodes_in(path: Path) -> list[ast.AST]:
    """Imports and attributes: to read all files takes seconds."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute)]


def own_imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a module imports; the lazy names of the root stand as '.name'."""
    package = "curator_dask"
    imported = set()
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if below_or_same(alias.name, package)]
            imported |= {target.partition(".")[2] for target in targets} - {""}
            continue
        if node.level:
            parts = name.split(".") if name else []
            drop = node.level - (path.name == "__init__.py")
            parts = parts[: len(parts) - drop] if drop else parts
            base = ".".join([*parts, node.module] if node.module else parts)
        elif below_or_same(node.module or "", package):
            base = (node.module or "").partition(".")[2]
        else:
            continue
        for alias in node.names:
            child = f"{base}.{alias.name}" if base else alias.name
            if child in modules:
                imported.add(child)
            elif base:
                imported.add(base)
            elif not alias.name.startswith("__"):
                imported.add(f".{alias.name}")
    for node in attribute_nodes(path):  # `import curator_dask` is for its __version__, not a way around
        if isinstance(node.value, ast.Name) and node.value.id == package:
            if node.attr in modules:
                imported.add(node.attr)
            elif not node.attr.startswith("__"):
                imported.add(f".{node.attr}")
    return imported


def layering_faults(package: Path) -> list[str]:
    modules = find_modules(package)
    faults, graph = [], {}
    for name, path in modules.items():
        here = layer(name)
        if here is None:
            faults.append(
                f"{name}: not in LAYERS of {Path(__file__).name} (nor in docs/architecture.md): place it there"
            )
            continue
        own_folder = name if path.name == "__init__.py" else None
        imports = own_imports(name, path, modules)
        graph[name] = {target for target in imports if target in modules and target != name}
        for target in imports:
            if target.startswith("."):
                faults.append(f"{name}: imports {target[1:]} from the root, import it from its own module")
                continue
            there = layer(target)
            if own_folder is not None and below_or_same(target, own_folder):
                continue
            if target == "" or there is None:
                faults.append(f"{name}: imports {target or 'the root package'}, which has no place in LAYERS")
            elif there < here:
                faults.append(
                    f"{name} ({LAYERS[here]}) imports {target} ({LAYERS[there]}), which stands above it"
                )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        faults.append(f"a circle: {' -> '.join(error.args[1])}")
    return faults


def without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                each
                for each in node.body
                if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            ] or [ast.Pass()]
    return tree


def gpu_faults(package: Path) -> list[str]:
    faults = []
    for name, path in find_modules(package).items():
        if name in GPU_MODULES:
            continue
        source = path.read_text(encoding="utf-8")
        if not re.search(
            "cudf|cupy|cuda", source, re.IGNORECASE
        ):  # most of them; to write one out again takes time
            continue
        tree = without_docstrings(source)
        words = set(re.findall(r"(?<![a-z])(?:cudf|cupy)(?![a-z])", ast.unparse(tree).lower()))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and re.fullmatch(r"cuda(:.*)?", str(node.value)):
                words.add(repr(node.value))
        faults += [f"{name}: names {word}; ask curator_dask.backend instead" for word in sorted(words)]
    return faults


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_faults(package: Path) -> list[str]:
    """Private names that a module takes from another of the package, or of what it took from there."""
    faults = []
    for name, path in find_modules(package).items():
        taken = set()
        for node in import_nodes(path):
            if isinstance(node, ast.Import):
                names = [alias for alias in node.names if below_or_same(alias.name, "curator_dask")]
                taken |= {alias.asname or alias.name for alias in names}
            elif node.level or below_or_same(node.module or "", "curator_dask"):
                taken |= {alias.asname or alias.name for alias in node.names}
                parts = {
                    part for alias in node.names for part in (alias.name, *(node.module or "").split("."))
                }
                faults += [f"{name}: imports {part}" for part in sorted(parts) if is_private(part)]
        faults += [
            f"{name}: uses {ast.unparse(node)}"
            for node in attribute_nodes(path)
            if is_private(node.attr) and ast.unparse(node.value) in taken
        ]
    return faults


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def heavy_in(loaded: set[str]) -> set[str]:
    return {heavy for heavy in HEAVY if any(below_or_same(name, heavy) for name in loaded)}


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import curator_dask")
    assert "curator_dask" in loaded
    assert heavy_in(loaded) == set()


def test_importing_get_client_loads_nothing_heavy():
    loaded = loaded_by("from curator_dask import get_client")
    assert "curator_dask.cluster.client" in loaded
    assert heavy_in(loaded) | ({"distributed"} & loaded) == set()


def test_heavy_packages_are_seen_when_they_load():
    assert heavy_in(loaded_by("import pandas")) >= {"pandas"}


def test_every_file_imports_only_what_stands_below_it():
    assert layering_faults(PACKAGE) == []


def test_only_the_fork_names_gpu_libraries():
    assert gpu_faults(PACKAGE) == []


def test_no_module_is_too_long_to_read():
    long = {
        path.name: lines for path in PACKAGE.rglob("*.py") if (lines := path.read_text().count("\n")) > 400
    }
    assert not long


def test_no_private_name_is_used_across_modules():
    assert private_faults(PACKAGE) == []


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "curator_dask"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"errors.py": "from curator_dask.backend import x", "backend.py": ""}, "errors .* imports backend"),
        ({"errors.py": "def f():\n    import curator_dask.cli", "cli.py": ""}, "errors .* imports cli"),
        ({"errors.py": "from . import backend", "backend.py": ""}, "errors .* imports backend"),
        (
            {"decode/a.py": "if TYPE_CHECKING:\n    from curator_dask.cli import app", "cli.py": ""},
            "decode.a .* imports cli",
        ),
        (
            {"decode/dali.py": "from ..frames.columns import x", "frames/columns.py": ""},
            "imports frames.columns",
        ),
        ({"tasks.py": "from curator_dask import get_client"}, "tasks: imports get_client from the root"),
        (
            {"tasks.py": "import curator_dask\nf = curator_dask.get_client"},
            "tasks: imports get_client from the root",
        ),
        ({"helpers.py": ""}, "helpers: not in LAYERS .* place it"),
        (
            {
                "decode/a.py": "from curator_dask.decode.b import x",
                "decode/b.py": "def f():\n    from .a import y",
            },
            "a circle: decode",
        ),
        (
            {"decode/__init__.py": "from .a import x", "decode/a.py": "from curator_dask.decode import x"},
            "a circle: decode",
        ),
        (
            {"image/__init__.py": "import curator_dask.cli", "image/embedders/base.py": "", "cli.py": ""},
            "image .* imports cli",
        ),
        (
            {
                "image/classifiers/base.py": "from curator_dask.image.embedders import x",
                "image/embedders/__init__.py": "",
            },
            "image.classifiers.base .* imports image.embedders",
        ),
    ],
)
def test_a_breach_of_the_layers_is_found(tmp_path, files, fault):
    faults = layering_faults(write_package(tmp_path, files))
    assert len(faults) == 1
    assert re.search(fault, faults[0])


def test_what_the_layers_allow(tmp_path):
    files = {
        "__init__.py": "def __getattr__(name):\n    from curator_dask.cli import app",
        "pipeline.py": "import curator_dask\nversion = curator_dask.__version__",
        "cli.py": "from curator_dask import __version__, errors\nfrom curator_dask.image.embedders import x",
        "image/__init__.py": "from curator_dask.image.embedders import x",
        "image/embedders/__init__.py": "from .base import x",
        "image/embedders/base.py": "from curator_dask.decode import y\nimport torch, curator_dask.errors",
        "decode/__init__.py": "from .a import y",
        "decode/a.py": "from .b import z",
        "decode/b.py": "import json",
        "errors.py": "",
    }
    assert layering_faults(write_package(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""About cudf."""\n# cupy, "cuda"\nx = torch.cuda.device_count()', 0),
        ("def f():\n    import cudf", 1),
        ("x = find_spec('cupy')", 1),
        ("x = torch.device('cuda')", 1),
        ("x = f'cuda:{0}'", 1),
        ("x = is_cudf(frame)", 1),
        ("pip = 'curator-dask[cuda13]'", 0),
    ],
)
def test_gpu_names_are_found_in_code_alone(tmp_path, source, count):
    files = {"tasks.py": source, "backend.py": "import cudf, cupy; x = 'cuda'"}
    assert len(gpu_faults(write_package(tmp_path, files))) == count


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from curator_dask.storage import _join", "cli: imports _join"),
        ("def f():\n    from .storage import _join as join", "cli: imports _join"),
        ("from curator_dask._storage import join", "cli: imports _storage"),
        ("from curator_dask import storage\nstorage._join('a', 'b')", "cli: uses storage._join"),
        ("import curator_dask.storage as files\nfiles._join", "cli: uses files._join"),
        ("import curator_dask.storage\ncurator_dask.storage._join", "cli: uses curator_dask.storage._join"),
        ("from curator_dask.storage import Remote\nRemote._ask(1)", "cli: uses Remote._ask"),
    ],
)
def test_a_private_name_of_another_module_is_found(tmp_path, source, fault):
    assert private_faults(write_package(tmp_path, {"cli.py": source})) == [fault]


def test_private_names_of_its_own_and_of_others_packages_are_no_fault(tmp_path):
    source = "import torch\nfrom curator_dask import __version__\n_x = torch._C\nclass A:\n    def f(self): self._y"
    assert private_faults(write_package(tmp_path, {"cli.py": source})) == []
