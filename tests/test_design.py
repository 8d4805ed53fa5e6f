"""The shape of the house: imports run downwards, files stay small, public names are documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest

import bert_emd
import bert_emd.data
import bert_emd.models

ROOT = Path(bert_emd.__file__).resolve().parent
FILES = sorted(path for path in ROOT.rglob("*.py"))

MAY_IMPORT = {
    "archives": set(),
    "errors": set(),
    "lazily": set(),
    "pot": set(),
    "processes": set(),
    "transfer": set(),
    "method": {"method"},
    "data": {"data"},
    "models": {"models", "method"},
    "training": {"training", "models", "data", "method"},
    "quickstart": {"quickstart"},
    "studies": {"studies", "training", "models", "data", "method"},
    "cli": {"cli", "studies", "training", "models", "data", "method", "errors", "quickstart"},
}
"""The floors of the house, and which of them each may import from."""


def floor_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with its full name."""
    found = set()
    package = ["bert_emd", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_the_files_of_every_floor_are_seen() -> None:
    assert {"method", "data", "models", "training", "cli"} <= {floor_of(path) for path in FILES}
    assert "bert_emd.method.CostAttention" in imported(ROOT / "method" / "mappings" / "emd.py") | imported(
        ROOT / "__init__.py"
    )
    assert "torch" in imported(ROOT / "method" / "transport.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    floor = floor_of(path)
    if floor == "__init__":  # the flat public face
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("bert_emd.")}
    # The ground: it imports nothing of ours but itself.
    ours -= {"archives", "errors", "lazily", "pot", "processes", "transfer", "__version__"}
    assert ours <= MAY_IMPORT[floor], f"{floor} imports {sorted(ours - MAY_IMPORT[floor])}"


@pytest.mark.parametrize("path", [p for p in FILES if floor_of(p) == "method"], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_method_knows_neither_models_nor_files_nor_command_lines(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {
        "transformers",
        "datasets",
        "accelerate",
        "pathlib",
        "os",
        "io",
        "argparse",
        "sys",
        "json",
        "csv",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", bert_emd.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    thing = getattr(bert_emd, name)
    text = inspect.getdoc(thing)
    assert text
    assert len(text.splitlines()[0]) > 10
    # A data class without a docstring of its own is given its signature as one.
    assert not text.startswith(f"{name}(")


@pytest.mark.parametrize("package", [bert_emd.data, bert_emd.models], ids=lambda package: package.__name__)
def test_names_imported_on_first_use_are_never_hidden_by_a_module(package: types.ModuleType) -> None:
    for path in ROOT.joinpath(package.__name__.split(".")[1]).glob("[a-z]*.py"):
        importlib.import_module(f"{package.__name__}.{path.stem}")
    things = {name: getattr(package, name) for name in package.__all__}
    assert [name for name, thing in things.items() if isinstance(thing, types.ModuleType)] == []


def test_every_public_name_is_listed_once_and_nothing_else_resolves() -> None:
    assert sorted(bert_emd.__all__) == list(bert_emd.__all__)
    assert set(bert_emd.__all__) <= set(dir(bert_emd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bert_emd.nothing


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for_and_exports_what_exists(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in [*tree.body, *(inner for block in tree.body if isinstance(block, ast.With) for inner in block.body)]:
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]:
            assert set(ast.literal_eval(node.value)) <= defined
