"""What is shipped, what is imported, how files may look: rules that no single module can keep."""

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from deploy.config import CONFIGS, PipelineConfig, load
from deploy.run_page import PARTS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("buffer", "synthesizer", "distiller", "deploy")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SHIPPED = [path for path in MODULES if (path.parent / "__init__.py").exists()]
"""Not the scripts that make what is committed beside them."""
BANNED = {"utils", "common", "helpers", "misc", "base", "core", "manager"}
MOST_LINES = 300
HEAVY = ("torch", "ray", "redis", "numpy")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_installs_a_package_of_our_names(package: str) -> None:
    # A set: a checkout with an .egg-info beside an installation names the same distribution twice.
    owners = set(importlib.metadata.packages_distributions().get(package, ()))
    assert owners == {"ssdkd"}, (
        f"pip uninstall {' '.join(owners - {'ssdkd'})}, then reinstall ssdkd"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_imported_is_the_one_beside_the_tests(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the wheel, built from a copy: setuptools would take in what an old build left."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_script_and_configuration(wheel: set[str]) -> None:
    data = [*ROOT.glob("*/py.typed"), *(ROOT / "buffer/lua").iterdir(), *CONFIGS.iterdir()]
    expected = {relative(path) for path in (*SHIPPED, *data)}
    assert {name.rsplit("/", 1)[-1] for name in expected} >= {"sample.lua", "digits.yaml"}
    assert len([name for name in expected if name.endswith("py.typed")]) == len(PACKAGES)
    assert expected <= wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == set(PACKAGES)
    assert {name for name in wheel if name.endswith(".py")} == set(map(relative, SHIPPED))


def test_the_wheel_holds_every_part_of_the_run_page(wheel: set[str]) -> None:
    parts = {relative(path) for path in PARTS.rglob("*") if path.is_file()}
    assert {name.rsplit("/", 1)[-1] for name in parts} >= {"page.html", "page.js", "NOTICE"}
    assert parts <= wheel


def test_tests_are_no_packages() -> None:
    # Otherwise tests/buffer would be imported in place of buffer.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_package_has_a_layer_for_each_of_its_modules() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layered = {name for each in contracts if each.get("exhaustive") for name in each["containers"]}
    folders = {relative(path.parent) for path in SHIPPED}
    assert layered == {folder.replace("/", ".") for folder in folders}


def heavy_modules(code: str) -> set[str]:
    """Which heavy modules a fresh interpreter has imported after some code."""
    report = (
        f"{code}\nimport sys\nprint('HEAVY', *(name for name in {HEAVY} if name in sys.modules))"
    )
    shown = subprocess.check_output([sys.executable, "-c", report], cwd=ROOT, text=True)
    return set(shown.splitlines()[-1].split()[1:])


CONFIG_MODULES = [
    "buffer.config",
    "buffer.controller.config",
    "synthesizer.config",
    "distiller.config",
    "deploy.config",
    "deploy.cli",
]


@pytest.mark.parametrize("module", CONFIG_MODULES)
def test_configuration_is_parsed_without_heavy_imports(module: str) -> None:
    assert heavy_modules(f"import {module}") == set()


@pytest.mark.parametrize("module", ["buffer.controller", "synthesizer", "distiller"])
def test_help_is_shown_without_heavy_imports(module: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['service', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass"
    )
    assert heavy_modules(code) == set()


def test_the_check_for_heavy_imports_sees_them() -> None:
    assert heavy_modules("import numpy") == {"numpy"}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not BANNED & {path.stem, *path.relative_to(ROOT).parent.parts}
    assert len(source.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_in_the_readme_names_every_module_and_no_other(package: str) -> None:
    tree = re.search(rf"^{package}/ .*?(?=^\S)", (ROOT / "README.md").read_text(), re.M | re.S)
    assert tree is not None
    modules = {path.name for path in MODULES if path.is_relative_to(ROOT / package)}
    assert set(re.findall(r"\w+\.py", tree[0])) == modules - {"__init__.py"}


def test_the_page_of_settings_tells_of_every_table_and_is_up_to_date() -> None:
    command = [sys.executable, "docs/configuration.py"]
    made = subprocess.check_output(command, cwd=ROOT, text=True)
    headings = [line for line in made.splitlines() if line.startswith("## ")]
    assert all(f"`{table}`" in "".join(headings) for table in PipelineConfig.model_fields)
    assert (ROOT / "docs/configuration.md").read_text() == made, "make docs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    # Files that wait for the user's own teacher name no weights.
    missing = [] if "weights:" in path.read_text() else ["teacher.weights=teacher.safetensors"]
    assert load(path, missing).run.name
