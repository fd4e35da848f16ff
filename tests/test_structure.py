"""The plan of the house, proved: imports point one way, the core stands alone, files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lora_ext"

LAYERS = (
    ("lora_ext.protocols", "lora_ext"),
    ("lora_ext.config",),
    ("lora_ext.checkpoint",),
    ("lora_ext.networks", "lora_ext.dataset"),
    ("lora_ext.training", "lora_ext.apply", "lora_ext.grid", "lora_ext.merge"),
    ("lora_ext.jobs",),
    ("lora_ext.host",),
    ("lora_ext.web",),
    ("lora_ext.demo",),
    ("lora_ext.ui",),
    ("lora_ext.commands",),
    ("lora_ext.cli",),
    ("lora_ext.__main__",),
)
"""Lowest first. A module may import its own part and any layer below."""

CORE = ("protocols", "config", "checkpoint", "networks", "dataset", "training", "apply", "grid", "merge")
HEAVY = ("transformers", "diffusers", "lycoris", "pytorch_optimizer", "gradio", "peft", "matplotlib")
"""Imported when they are used, never when a module is loaded."""

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
OUTSIDE_THE_PACKAGE = [ROOT / "run.py", *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    """`lora_ext/grid/values.py` → `lora_ext.grid.values`; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_and_layer(module: str) -> tuple[str, int]:
    """The part of the house that a module belongs to, and its layer's number from below."""
    parts = [(part, number) for number, layer in enumerate(LAYERS) for part in layer]
    fitting = [(part, number) for part, number in parts if module == part or module.startswith(part + ".")]
    part, number = max(fitting, key=lambda each: len(each[0]))
    return part, number


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, inside_functions: bool = True) -> Iterator[str]:
    """Names of the modules that a file imports when it runs, without those for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module == "lora_ext" or node.module.startswith("lora_ext."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower())
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside_functions)


def relative(path: Path) -> str:
    """How a file is called in a failing test."""
    return path.relative_to(ROOT).as_posix()


def parsed(paths: Iterable[Path]) -> Iterator[tuple[Path, ast.Module]]:
    """Each file with its syntax tree."""
    return ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


def test_imports_point_one_way() -> None:
    wrong = []
    for path, tree in parsed(SOURCES):
        importer, layer = part_and_layer(module_name(path))
        for name in imports(tree):
            if name.split(".")[0] == "lora_ext":
                part, its_layer = part_and_layer(name)
                if its_layer >= layer and part != importer:
                    wrong.append(f"{relative(path)} imports {name}, which is not below it")
    assert not wrong


def test_gradio_and_the_webui_stay_in_their_places() -> None:
    for path, tree in parsed(SOURCES):
        top_names = {name.split(".")[0] for name in imports(tree)}
        place = path.relative_to(PACKAGE).parts
        assert "gradio" not in top_names or place[0] == "ui", relative(path)
        assert "modules" not in top_names or place[:2] == ("host", "webui"), relative(path)


def test_heavy_packages_are_imported_when_used() -> None:
    for path, tree in parsed(SOURCES):
        allowed = {"gradio"} if path.relative_to(PACKAGE).parts[0] == "ui" else set()
        at_import = {name.split(".")[0] for name in imports(tree, inside_functions=False)}
        assert not at_import & (set(HEAVY) - allowed), relative(path)


def test_the_settings_need_the_standard_library_alone() -> None:
    """protocols/ and config/ are read by every form and help text: they start in no time."""
    for path, tree in parsed((PACKAGE / "protocols.py", *(PACKAGE / "config").glob("*.py"))):
        names = {name.split(".")[0] for name in imports(tree)}
        assert names <= set(sys.stdlib_module_names) | {"lora_ext", "tomli", "tomllib"}, relative(path)


def test_core_is_importable_without_gradio_and_the_webui() -> None:
    """In a process of its own, in which both are blocked, and without any heavy package coming along."""
    modules = [module_name(path) for path in SOURCES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in CORE]
    assert len(modules) > 20
    program = f"""
import importlib, sys
sys.modules["gradio"] = sys.modules["modules"] = None
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted(set(sys.modules) & set({HEAVY!r}) - {{"gradio"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"imported along with the core: {done.stdout}"


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for path, tree in parsed([*SOURCES, *OUTSIDE_THE_PACKAGE]):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        too_long += [f"{relative(path)}: {lines} lines"] if lines > MAX_FILE_LINES else []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                too_long += [f"{relative(path)}: {node.name} has {lines} lines"] if lines > MAX_FUNCTION_LINES else []
    assert not too_long


def test_no_exception_is_caught_unnamed_or_swallowed() -> None:
    for path, tree in parsed([*SOURCES, *OUTSIDE_THE_PACKAGE]):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                place = f"{relative(path)}, line {node.lineno}"
                assert node.type is not None, f"{place}: bare except"
                silent = all(isinstance(statement, ast.Pass) for statement in node.body)
                broad = ast.unparse(node.type) in ("Exception", "BaseException")
                assert not (silent and broad), f"{place}: swallows every exception"


def test_everything_public_has_a_docstring() -> None:
    missing = []
    for path, tree in parsed(SOURCES):
        missing += [] if ast.get_docstring(tree) else [relative(path)]
        missing += [
            f"{relative(path)}: {name}" for name, node in public_definitions(tree) if not ast.get_docstring(node)
        ]
    assert not missing


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods; torch's own `forward` says what it does by its class."""
    for node in tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_") or node.name == "forward":
            continue
        if isinstance(node, ast.FunctionDef) and any("overload" in ast.unparse(each) for each in node.decorator_list):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node)
