"""The README says what is so."""

import re
import runpy
import shlex

from click.testing import CliRunner
from conftest import RECIPES, ROOT

from cnnbench.cli.main import cli

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = (text for language, text in BLOCKS if language == "python")
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    path, top1, agreement = capsys.readouterr().out.split()
    assert (tmp_path / path / "finished.json").is_file()
    assert float(top1) > 0.8 and float(agreement) == 1.0


def test_the_recipe_example_is_the_recipe_that_ships_but_for_its_loss(tmp_path):
    from cnnbench import load_recipe

    (text,) = (text for language, text in BLOCKS if language == "yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    shown = load_recipe(tmp_path / "recipe.yaml")
    shipped = load_recipe(RECIPES / f"{shown.name}.yaml")
    assert shown.model_copy(update={"loss": shipped.loss}) == shipped


def test_every_command_and_option_in_it_exists():
    commands = re.findall(r"^(?:\$ )?cnnbench (\w+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 8
    for name, rest in commands:
        help_text = CliRunner().invoke(cli, [name, "--help"])
        assert help_text.exit_code == 0, name
        for word in shlex.split(rest):
            if word.startswith("--"):
                assert word in help_text.output, (name, word)
            if word.startswith("recipes/"):
                assert (ROOT / word).is_file(), word


def test_every_make_target_in_it_exists():
    targets = set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE))
    names = {a or b for a, b in targets}
    makefile = (ROOT / "Makefile").read_text()
    assert names and all(f"\n{name}: " in makefile for name in names)


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README and "TODO" not in README


def test_its_tables_are_those_of_the_results_that_are_kept():
    pages = runpy.run_path(str(ROOT / "scripts" / "results.py"))["pages"]()
    assert len(pages) == 2
    for page, text in pages.items():
        assert page.read_text() == text, page
