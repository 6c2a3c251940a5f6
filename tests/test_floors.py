"""The house, proved on the source text: who imports whom, and the one door each for h11, jwt and sqlite3."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "engadi_gateway"
FILES = sorted(PACKAGE.rglob("*.py"))

#: Lower floors first. A room is a folder or a file of its own.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(("model", "errors", "settings")),
    frozenset(("pipeline", "wire")),
    frozenset(("net", "store")),
    frozenset(("health", "authority", "explain", "record", "admin", "gateway", "cli", "__main__")),
)
#: The exchange holds the pipeline it began with, and the package names the two classes for embedding: types only.
TYPES_ONLY = {("pipeline/exchange.py", "pipeline"), ("__init__.py", "gateway"), ("__init__.py", "settings")}

DOORS = {
    "h11": {"wire/request.py"},
    "jwt": {"pipeline/identity.py"},
    "sqlite3": {"store/database.py"},
}
NEVER_IN_DECISIONS = frozenset(
    ("asyncio", "socket", "ssl", "time", "threading", "concurrent", "select", "logging", "os", "pathlib", "random",
     "secrets", "subprocess", "queue", "datetime", "sqlite3")
)  # fmt: skip
STANDARD_OR_OURS = frozenset(("h11", "jwt", "engadi_gateway"))


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _room(module: str) -> str:
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether under TYPE_CHECKING) for each import in a file."""
    tree = ast.parse(path.read_text())
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typed) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            modules = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "engadi_gateway" else []
            found += [(module, id(node) in typed) for module in modules or [node.module or ""]]
    return found


def _is_decision(name: str) -> bool:
    return _room(name) in FLOORS[1]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_imports_only_from_lower_floors_or_its_own_room(path: Path) -> None:
    name = _name(path)
    room = _room(name)
    for module, is_typed in _imports(path):
        if not module.startswith("engadi_gateway.") or module == "engadi_gateway.__version__":
            continue
        other = module.split(".")[1]
        if other == room or (is_typed and (name, other) in TYPES_ONLY):
            continue
        if _floor(room) == _floor(other) and _floor(room) in {0, len(FLOORS) - 1}:
            continue  # the words build on each other, the top floor composes itself; no circles, as shown below
        assert _floor(other) < _floor(room), f"{name} imports {module}"


def test_no_circle_among_the_rooms_of_a_floor() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = _name(path)
        others = {
            module.split(".")[1]
            for module, is_typed in _imports(path)
            if module.startswith("engadi_gateway.") and not (is_typed and (name, module.split(".")[1]) in TYPES_ONLY)
        }
        graph.setdefault(_room(name), set()).update(others - {_room(name)})
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        if room in done:
            return
        for other in sorted(graph.get(room, ())):
            if other in graph:
                visit(other, (*path, room))
        done.add(room)

    for room in sorted(graph):
        visit(room, ())


@pytest.mark.parametrize("path", [path for path in FILES if _is_decision(_name(path))], ids=_name)
def test_decisions_touch_nothing(path: Path) -> None:
    for module, _ in _imports(path):
        assert module.split(".")[0] not in NEVER_IN_DECISIONS, module
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in {"open", "print", "input"}]


@pytest.mark.parametrize("door", DOORS)
def test_there_is_one_door(door: str) -> None:
    users = {_name(path) for path in FILES for module, _ in _imports(path) if module.split(".")[0] == door}
    assert users == DOORS[door]


def test_nothing_but_the_standard_library_and_two_packages_is_imported() -> None:
    for path in FILES:
        for module, _ in _imports(path):
            top = module.split(".")[0]
            assert top in sys.stdlib_module_names or top in STANDARD_OR_OURS, f"{_name(path)} imports {module}"


def _maps() -> list[Path]:
    """The folders that say what is in them."""
    return [
        path
        for path in PACKAGE.rglob("__init__.py")
        if path.parent != PACKAGE and len(path.read_text().split("\n")) > 2
    ]


@pytest.mark.parametrize("path", _maps(), ids=_name)
def test_a_folders_map_names_every_file_in_it_and_no_other(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    told = [part for line in said.splitlines() for part in re.split(r" {2,}", line)[1:]]  # but for what they are about
    names = re.findall(r"[a-z_]+", re.sub(r"\([^)]*\)", "", " ".join(told)))
    assert sorted(names) == sorted(file.stem for file in path.parent.glob("*.py") if file != path)


def test_every_file_has_tests_that_are_found_by_its_name_or_are_named_for_it() -> None:
    folder = Path(__file__).parent
    said = (folder / "__init__.py").read_text()
    told = {
        name: re.findall(r"test_[a-z0-9_]+", places)
        for names, places in re.findall(r"  +([a-z_ ]+): ([a-z0-9_, ]+?)(?=   |$)", said, re.MULTILINE)
        for name in names.split()
    }
    wanted = {file.stem for file in FILES} - {"__init__", "__main__", "model"}  # the last one: values
    assert sorted(wanted) == sorted({*told, *(name for name in wanted if (folder / f"test_{name}.py").exists())})
    assert [place for places in told.values() for place in places if not (folder / f"{place}.py").exists()] == []
    assert [name for name in told if (folder / f"test_{name}.py").exists()] == [], "it is found without"


def test_the_packages_floors_are_these() -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    floors = [frozenset(re.findall(r"[a-z]+", row)) for row in re.findall(r"^    [a-z]+  +(.*)$", said, re.MULTILINE)]
    assert floors == [rooms - {"__main__"} for rooms in FLOORS]


def test_every_file_is_on_a_floor() -> None:
    rooms = {_room(_name(path)) for path in FILES} - {"__init__"}
    assert rooms == set().union(*FLOORS)
