"""The house: which room may import which, and how large its pieces may be."""

import ast
import json
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from house import PLANS, Structure, run

ROOT = Path(__file__).parents[1]
HOUSE = Structure(ROOT)
ROOMS = (
    *("errors", "_common", "chain", "tokens", "networks", "samplers", "policy", "checkpoints"),
    *("evaluation.rollout", "evaluation", "deploy", "cli", "__main__"),
)
"""From the ground up: each imports only from those before it."""
MOST_ENTRIES = 15
"""14 and `__main__.py`, which `python -m asd_policy` looks for there and nowhere else."""
MOST_LINES = 60
MOST_PARAMETERS = 8
MOST_FRAMES, MOST_FILES = 8, 5


def room_of(module: str) -> int:
    """The floor of a module; of two that fit, the room inside the other."""
    fits = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return ROOMS.index(max(fits, key=len))


def imports() -> dict[str, set[str]]:
    """What each module imports, lazily or for types alone, too; the front door imports nothing but names."""
    return {name: wanted for name, wanted in HOUSE.imports().items() if name}


def test_the_top_level_fits_on_one_hand_and_a_bit() -> None:
    assert HOUSE.entries <= MOST_ENTRIES
    folders = {path.name for path in HOUSE.package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {room.partition(".")[0] for room in ROOMS} - {"errors", "__main__"}


def test_imports_point_one_way() -> None:
    up = [(name, other) for name, wanted in imports().items() for other in wanted if room_of(other) > room_of(name)]
    assert up == []


def test_there_are_no_circles() -> None:
    try:
        list(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("samplers", "networks.backends"),
        ("samplers", "policy"),
        ("policy", "evaluation"),
        ("checkpoints", "evaluation"),
    ],
)
def test_rooms_that_do_not_know_each_other(room: str, never: str) -> None:
    found = [
        (name, other)
        for name, wanted in imports().items()
        for other in wanted
        if name.startswith(room) and (other == never or other.startswith(f"{never}."))
    ]
    assert found == []


def test_package_and_environments_do_not_import_each_other() -> None:
    for folder, never in (("asd_policy", "asd_envs"), ("envs/asd_envs", "asd_policy")):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [name for name in names if name.split(".")[0] == never], path


def test_functions_are_short_and_have_few_parameters() -> None:
    for node in HOUSE.functions:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = [each for each in given if each.arg not in ("self", "cls")]
        assert (node.end_lineno or 0) - node.lineno < MOST_LINES, node.name
        assert len(parameters) <= MOST_PARAMETERS, node.name


def test_no_two_public_things_have_one_name() -> None:
    names: Counter[str] = Counter()
    for path in HOUSE.modules:
        tree = ast.parse(path.read_text())
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names.update(name for name in own if not name.startswith("_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_way_to_the_network_is_short() -> None:
    """From `select_action` to the network's call, both ends counted."""
    found = json.loads(run(ROOT, PLANS, str(ROOT / "checkpoints/avoid"), "asd:window=16", "1"))
    assert found["frames"] <= MOST_FRAMES
    assert found["files"] <= MOST_FILES
