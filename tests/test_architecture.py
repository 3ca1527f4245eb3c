"""The shape of the house: imports point one way, names stay clear, the command line starts light."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clipkit"
LEAVES = {"recipe", "run", "resources", "report"}
MAY_IMPORT = {
    "cli": {"dataset", "model", "training", "evaluation", "overlap", "demo"},
    "demo": {"dataset", "model", "training", "evaluation", "overlap", "report"},
    "overlap": {
        "evaluation",
        "model.encoder",
        "model.detector",
        "model.preprocess",
        "dataset.shards",
        "dataset.shards.thumbnails",
        "dataset.texts",
        "report",
    },
    "evaluation": {"model.encoder", "model.linear", "model.preprocess", "dataset.shards"},
    "training": {"model", "dataset.shards"},
    "dataset": set(),
    "model": set(),
    "report": {"run"},
    "run": {"recipe"},
    "recipe": set(),
    "resources": set(),
}
CONTRACTS = {"dataset.shards"}
"""Packages of which other rooms may use what `__init__` names: a module inside one is allowed by its own name alone."""
ENGINE_LEAVES = {"recipe", "run", "resources"}
"""Leaves that an engine may use; `report` is for those who show something."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Modules of clipkit that a file imports anywhere, without the `clipkit.` in front."""
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name.removeprefix("clipkit.") in known else node.module)
    return {name.removeprefix("clipkit.") for name in found if name.startswith("clipkit.")}


def allowed(room: str, target: str) -> bool:
    target_room = target.split(".")[0]
    if target_room == room or room in ("", "__main__"):
        return True
    if target_room in (LEAVES if room in ("cli", "demo", "overlap") else ENGINE_LEAVES):
        return room not in LEAVES or target_room in MAY_IMPORT[room]
    return any(target == rule or (target.startswith(rule + ".") and rule not in CONTRACTS) for rule in MAY_IMPORT[room])


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        for target in imports_of(path)
        if not allowed(name.split(".")[0], target)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_itself_refuses_what_the_house_forbids():
    assert not allowed("dataset", "model.preprocess")
    assert not allowed("model", "dataset.shards")
    assert not allowed("training", "evaluation.zero_shot")
    assert not allowed("evaluation", "dataset.images.download")
    assert not allowed("training", "dataset.shards.writing")
    assert not allowed("run", "report.tables")
    assert allowed("overlap", "evaluation.zero_shot")


def test_the_rule_names_modules_that_are_there():
    named = (
        {target for targets in MAY_IMPORT.values() for target in targets}
        | CONTRACTS
        | {"dataset.images.download", "dataset.shards.writing"}
    )
    assert named <= modules().keys()


def test_there_are_no_import_cycles():
    graph = {name: {t for t in imports_of(path) if t != name} for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name in done:
            return
        for target in sorted(graph.get(name, ())):
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_dataset_room_and_the_command_line_start_without_torch():
    code = (
        "import sys, clipkit.dataset.build, clipkit.dataset.shards, clipkit.dataset.images.download;"
        "assert 'torch' not in sys.modules and 'webdataset' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_help_is_light_and_takes_less_than_a_second_of_the_processor():
    heavy = {"torch", "pandas", "daft", "sklearn", "scipy", "numpy", "pyarrow", "matplotlib", "PIL", "img2dataset"}
    code = (
        "import sys\nfrom clipkit.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"loaded = {heavy!r} & set(sys.modules)\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    seconds = []
    for _ in range(3):  # The processor's time, not the clock's, and the best of three: a busy machine is no fault of the command.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "clipkit", "--help"], check=True, timeout=60, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0


def test_no_module_is_a_dumping_ground_and_none_is_too_long():
    for name, path in modules().items():
        assert not {"utils", "util", "common", "helpers", "misc"} & set(name.split(".")), name
        assert len(path.read_text().splitlines()) <= 400, f"{name} is too long"


def test_functions_stay_short():
    sizes = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{name}.{node.name}:{node.lineno}"] = node.end_lineno - node.lineno + 1
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    ordered = sorted(sizes.values())
    assert ordered[int(0.9 * len(ordered))] <= 40


def test_words_that_the_house_does_not_use_stay_out_of_its_names():
    banned = re.compile(r"(^|_)(config|args|params|sample|samples|record|records|item|items|registry)($|_)|(Trainer|Manager|Engine)$")
    formats = {"dataset.pages.warc", "dataset.pages.wat"}  # a record is what the standard of WARC calls it
    borrowed = {"samples_seen", "samples_per_second", "num_samples", "number_sample_per_shard"}  # the field's own terms
    wrong = []
    for name, path in modules().items():
        if name in formats:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and banned.search(node.name):
                wrong.append(f"{name}: {node.name}")
            if isinstance(node, ast.arg) and banned.search(node.arg) and node.arg not in borrowed | {"args"}:
                wrong.append(f"{name}: argument {node.arg}")
    assert wrong == []


def test_the_map_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    start = readme.index("## The map")
    house = readme[start:].split("\n## ")[0]
    missing = [
        name
        for name, path in modules().items()
        if name and path.name not in ("__init__.py", "__main__.py") and not re.search(rf"\b{re.escape(path.stem)}\b", house)
    ]
    assert missing == []


def test_the_project_speaks_of_itself_alone():
    """No absolute path of a machine, no registry's host name, no tool that only its makers have."""
    banned = re.compile(
        r"(?<!\w)/work/(main|shared)|/tmp/real|\.\./shared|pypi\.org|npmjs|deb\.debian|files\.pythonhosted|\bsubagent|claude|anthropic",
        re.IGNORECASE,
    )
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / line for line in listed.stdout.splitlines()] if listed.returncode == 0 else list(PACKAGE.rglob("*.py"))
    wrong = []
    for path in files:
        if path.suffix in (".py", ".md", ".toml", ".txt", ".html", ".yml", ".j2", "") and path.is_file() and path != Path(__file__):
            wrong += [f"{path.name}: {m.group()}" for m in banned.finditer(path.read_text(errors="ignore"))]
    assert wrong == []


def public_names(tree: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes that others see, and the methods of those classes."""
    here = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    return here + [inner for node in here if isinstance(node, ast.ClassDef) for inner in public_names(node)]


@pytest.mark.parametrize("name", ["recipe", "run", "resources", "dataset.shards", "model.encoder", "evaluation.suite", "report.tables"])
def test_public_names_of_the_contracts_have_docstrings(name):
    paths = [path for module, path in modules().items() if module == name or module.startswith(f"{name}.")]
    public = [node for path in paths for node in public_names(ast.parse(path.read_text()))]
    assert public, f"{name} has no public name: its modules are elsewhere"
    assert [node.name for node in public if ast.get_docstring(node) is None] == []
