"""Who may import whom: the walls between the packages, and between the folders of each."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "exodus_core" / "src", ROOT / "client" / "src", ROOT / "service" / "src"]
FRAMEWORK = ["fastapi", "starlette", "uvicorn", "httptools"]
COMMANDS = ["exodus_service.cli"]
SERVICE, CLIENT = "exodus_service", "exodus_client"

#: A package, modules that it does not import, and the modules that are nevertheless allowed to.
WALLS: list[tuple[str, list[str], list[str]]] = [
    ("exodus_core", [SERVICE, CLIENT, "httpx", *FRAMEWORK], []),
    (CLIENT, [SERVICE, "exodus_core", *FRAMEWORK], []),
    (SERVICE, FRAMEWORK, [f"{SERVICE}.http"]),
    (SERVICE, [f"{SERVICE}.http"], [*COMMANDS, f"{SERVICE}.http"]),
    (f"{SERVICE}.operations", [f"{SERVICE}.http"], []),
    (f"{SERVICE}.models", [f"{SERVICE}.operations"], []),
    (f"{SERVICE}.models.storage", [f"{SERVICE}.models", f"{SERVICE}.errors"], []),
    (f"{SERVICE}.gradients", [f"{SERVICE}.operations", f"{SERVICE}.models"], []),
    (f"{SERVICE}.compute", [f"{SERVICE}.operations", f"{SERVICE}.models", f"{SERVICE}.gradients"], []),
    (f"{SERVICE}.call", [f"{SERVICE}.operations", f"{SERVICE}.models", f"{SERVICE}.gradients"], []),
    (f"{CLIENT}.wire", [CLIENT], []),
    (f"{CLIENT}._transport", [f"{CLIENT}._gradients", f"{CLIENT}._models", f"{CLIENT}._client"], []),
    (f"{CLIENT}._gradients", [f"{CLIENT}._models"], []),
    (f"{CLIENT}._models", [f"{CLIENT}._data_parallel", f"{CLIENT}._client", f"{CLIENT}.torch"], []),
]


def within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports() -> Iterator[tuple[str, str]]:
    """Pairs of a module of the three packages and a module that it imports, inside functions too."""
    for source in SOURCES:
        for path in source.rglob("*.py"):
            module = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((module, name.name) for name in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from ((module, f"{node.module}.{name.name}") for name in node.names)


IMPORTS = list(imports())


@pytest.mark.parametrize(("package", "strangers", "allowed"), WALLS)
def test_walls_stand(package: str, strangers: list[str], allowed: list[str]) -> None:
    assert any(within(module, [package]) for module, _ in IMPORTS)
    breaches = [
        f"{module} imports {imported}"
        for module, imported in IMPORTS
        if within(module, [package]) and not within(module, allowed)
        if within(imported, strangers) and not (within(package, strangers) and within(imported, [package]))
    ]
    assert breaches == []


def test_the_product_imports_nothing_that_checks_or_measures_it() -> None:
    outside = ["tests", "tools", "benchmarks", "examples", "experiments", "assertions"]
    assert [pair for pair in IMPORTS if within(pair[1], outside)] == []


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("exodus_client.torch", ["exodus_core", "exodus_service"]),
        ("exodus_core", ["exodus_client", "exodus_service", "httpx"]),
        ("exodus_core", ["nir", "h5py"]),
        ("exodus_core.nir", ["typer", "rich", "safetensors"]),
        ("exodus_core.verify", ["typer", "rich", "flint"]),
        ("exodus_service.engine", FRAMEWORK),
    ],
)
def test_what_is_loaded_at_import(module: str, strangers: list[str]) -> None:
    script = f"import sys, {module}; print(*(name for name in {strangers} if name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


#: Private members of others that are used all the same: there is no public way.
UNAVOIDABLE = {"torch._C", "torch._C._current_graph_task_id"}


def private_accesses(tree: ast.AST) -> Iterator[str]:
    """Private attributes of objects other than `self`, `cls` and `super()`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and f"{owner}.{node.attr}" not in UNAVOIDABLE:
                yield f"{owner}.{node.attr}"


def test_objects_of_the_client_leave_the_private_members_of_others_alone() -> None:
    assert list(private_accesses(ast.parse("model._info; self._info; super()._apply()"))) == ["model._info"]
    found = [
        f"{path.name}: {access}"
        for path in (ROOT / "client" / "src").rglob("*.py")
        for access in private_accesses(ast.parse(path.read_text()))
    ]
    assert found == []
