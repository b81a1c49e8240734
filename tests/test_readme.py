from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import shipworthy
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.recipe import METRICS, PASSES, read_recipe
from shipworthy.pipeline.recipe_parts import DataPart, ModelPart, OnnxPart, ProfilePart, TensorrtPart

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECIPES, COMMANDS = ROOT / "docs" / "recipe.md", ROOT / "docs" / "command-line.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models/assets").glob("*.md")])
VERBS = ("build", "inspect", "export", "quantize", "engine", "profile", "compare", "parity", "doctor")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def everywhere(language: str) -> list[Any]:
    """Return the blocks of all pages as test parameters named by their page."""
    return [
        pytest.param(text, id=f"{page.name}-{i}") for page in PAGES for i, text in enumerate(blocks(page, language))
    ]


def usage(verb: str) -> str:
    """Return a command's help on one line."""
    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    return " ".join(done.output.split())


@pytest.mark.parametrize("text", everywhere("sh"))
def test_shell_commands_exist(text: str) -> None:
    """Every line is a target of the Makefile, or a command of ours with options that it has."""
    for line in text.splitlines():
        program, first, *rest = shlex.split(line)
        if program == "make":
            assert re.search(rf"^{first}:", (ROOT / "Makefile").read_text(), re.M), line
        elif program == "shipworthy":
            shown = usage(first)
            assert all(re.search(rf"{option}\b", shown) for option in rest if option.startswith("-")), line
        else:
            assert line == "pip install --constraint constraints.txt '.[rtx]'"


@pytest.mark.parametrize("text", everywhere("yaml"))
def test_yaml_is_a_recipe_or_runs_a_build(text: str, tmp_path: Path) -> None:
    """Recipes pass the recipe reader; the workflow's steps name a command that exists."""
    if text.startswith("shipworthy:"):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        assert read_recipe(tmp_path / "recipe.yaml").goals
    else:
        steps = yaml.safe_load(text)["jobs"]["verdict"]["steps"]
        assert "shipworthy build recipe.yaml --workdir out" in [step.get("run") for step in steps]


@pytest.mark.parametrize("text", everywhere("python"))
def test_python_names_and_arguments_exist(text: str) -> None:
    """Every `sw.name` is public, and the calls name parameters that there are."""
    tree = ast.parse(text)
    names = {id(n): n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "sw"}
    assert set(names.values()) <= set(shipworthy.__all__)
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n.func) in names):
        known = inspect.signature(getattr(shipworthy, names[id(call.func)])).parameters
        assert {word.arg for word in call.keywords} <= set(known)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `open_data` open the bundled data with 100 test images."""
    opened: Callable[..., Any] = shipworthy.open_data

    def small(source: str) -> Any:
        data = opened(source, "bundled")
        return replace(data, test=replace(data.test, labels=data.test.labels[:100]))

    monkeypatch.setattr(shipworthy, "open_data", small)


@pytest.mark.usefixtures("few_images")
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's Python runs as it stands, but for its length."""
    (text,) = blocks(README, "python")
    for long, short in (("steps=700", "steps=1, batch=16"), ("calibration=512", "calibration=32"), ("budget_s=10", "budget_s=1, warmup_cap_s=1.0")):  # fmt: skip # noqa: E501
        assert long in text
        text = text.replace(long, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[1].startswith("faster ")


def test_the_recipe_page_names_every_key() -> None:
    """No setting of a recipe, no pass and no metric is undocumented."""
    page = RECIPES.read_text(encoding="utf-8")
    parts = (*PASSES.values(), ModelPart, DataPart, OnnxPart, TensorrtPart, ProfilePart)
    wanted = {f.name for part in parts for f in fields(part)} | set(METRICS)
    assert {name for name in wanted if not re.search(rf"`(?:\w+\.)?{name}`", page)} == set()
    assert {name for name in PASSES if f"**{name}**" not in page} == set()


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_page_names_every_option(verb: str) -> None:
    """No command and no option is undocumented."""
    page = COMMANDS.read_text(encoding="utf-8")
    assert f"| `{verb}` |" in page
    options = set(re.findall(r"(?<!\S)--[a-z]+", usage(verb))) - {"--help"}
    assert {option for option in options if option not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder that is there."""
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


def test_exit_codes_are_said_once_and_the_same() -> None:
    """The README's table is what the command line's help says."""
    rows = dict(re.findall(r"^\| (\d) \| (\w+)", README.read_text(encoding="utf-8"), re.M))
    shown = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "0 met, 1 missed, 2 bad input, 3 unclear, 4 a tool or device failed" in shown
    assert rows == {"0": "all", "1": "a", "2": "bad", "3": "unclear", "4": "a"}
