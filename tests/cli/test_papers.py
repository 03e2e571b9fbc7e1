"""Every command, option, recipe, path and link in README.md and docs/ exists; examples run."""

import re
import runpy
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import RECIPES, ROOT
from test_imports import PACKAGE, ROOMS

from cnnbench import __all__ as public
from cnnbench import load_recipe
from cnnbench.cli import cli
from cnnbench.errors import RecipeError
from cnnbench.registry.kinds import DATASETS

README = ROOT / "README.md"
PAGES = sorted([README, RECIPES / "README.md", *(ROOT / "docs").glob("*.md")])
SUBJECTS = {
    "recipes", "data", "networks", "exports", "compression", "results", "speed", "reliability",
    "python", "CHANGES", "CONTRIBUTING",
}  # fmt: skip
MAX_LINES = 150
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What stands for a word of the user's own: RUN, FILE.png, images/train/….
PLACEHOLDER = re.compile(r"[A-Z_]+(\.\w+)?|.*….*")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    return FENCE.findall(page.read_text())


@cache
def spans(page: Path) -> list[str]:
    """The code within sentences and tables, each in one line."""
    prose = FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def lines(page: Path) -> list[str]:
    """What is typed on a command line: lines of blocks without language, and code in sentences."""
    typed = [line for language, text in blocks(page) if not language for line in text.splitlines()]
    return [line.removeprefix("$ ") for line in typed] + spans(page)


def commands(page: Path) -> list[list[str]]:
    """The words after `cnnbench` of each command."""
    found = [line[line.index("cnnbench ") :] for line in lines(page) if is_command(line)]
    return [shlex.split(line, comments=True)[1:] for line in found]


def is_command(line: str) -> bool:
    return re.match(r"(taskset -c 0 )?cnnbench ", line) is not None


def all_options() -> set[str]:
    found = {"--help"}
    for command in [cli, *cli.commands.values()]:
        for parameter in command.get_params(click.Context(command)):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


EXAMPLES = [(page, language, text) for page in PAGES for language, text in blocks(page)]


def examples(wanted: str):
    found = [(page, text) for page, language, text in EXAMPLES if language == wanted]
    assert found
    ids = [f"{page.stem}-{i}" for i, (page, _) in enumerate(found)]
    return pytest.mark.parametrize(("page", "text"), found, ids=ids)


def test_the_readme_is_short_and_links_to_every_page():
    assert len(README.read_text().splitlines()) <= MAX_LINES
    assert {page.stem for page in PAGES if page.parent == ROOT / "docs"} == SUBJECTS
    for subject in SUBJECTS:
        assert f"(docs/{subject}.md)" in README.read_text(), subject


def test_every_public_name_is_on_its_page():
    named = re.findall(r"\w+", " ".join(spans(ROOT / "docs" / "python.md")))
    assert not set(public) - set(named)


@examples("python")
def test_a_python_example_runs(page, text, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, str(page), "exec"), {})
    path, top1, agreement = capsys.readouterr().out.split()
    assert (tmp_path / path / "finished.json").is_file()
    assert float(top1) > 0.8 and float(agreement) == 1.0


@examples("yaml")
def test_a_yaml_example_is_valid(page, text, tmp_path):
    """A whole recipe; or sections, which take the place of those of a recipe that ships."""
    if not text.startswith("name: "):
        base = (RECIPES / "resnet20_cifar10.yaml").read_text().splitlines(keepends=True)
        keys = re.findall(r"^(\w+):", text, re.MULTILINE)
        text = "".join(line for line in base if line.partition(":")[0] not in keys) + text
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").name == "resnet20_cifar10"


def test_the_recipe_in_the_readme_is_the_one_that_ships_but_for_its_loss(tmp_path):
    (text,) = (text for language, text in blocks(README) if language == "yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    shown = load_recipe(tmp_path / "recipe.yaml")
    shipped = load_recipe(RECIPES / f"{shown.name}.yaml")
    assert shown.model_copy(update={"loss": shipped.loss}) == shipped


def test_commands_are_found_wherever_they_are_written():
    count = {page: len(commands(page)) for page in PAGES}
    assert count[README] >= 15 and count[ROOT / "docs" / "speed.md"] >= 7
    assert sum(count.values()) >= 50
    assert {words[0] for page in PAGES for words in commands(page)} == set(cli.commands)


@each_page
def test_every_command_parses(page):
    for name, *words in commands(page):
        command = cli.commands[name]
        parser = command.make_parser(click.Context(command))
        values, _, _ = parser.parse_args(words)
        for parameter in command.get_params(click.Context(command)):
            given = values.get(parameter.name)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(parameter.type, click.Choice) and isinstance(value, str):
                    is_open = PLACEHOLDER.fullmatch(value)
                    assert is_open or value in parameter.type.choices, (name, value)


@each_page
def test_every_recipe_in_a_command_takes_the_values_set(page, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, *words in commands(page):
        recipes = [word for word in words if (RECIPES / f"{Path(word).stem}.yaml").is_file()]
        values = [b for a, b in pairwise(words) if a == "--set"]
        values = tuple(value.replace("=N", "=1") for value in values if "…" not in value)
        for recipe in recipes:
            try:
                load_recipe(RECIPES / f"{Path(recipe).stem}.yaml", values)
            except RecipeError as error:
                # Weights of the user's own are a file that is not here.
                absent = [p for p in error.problems if "efficientnet-lite0.safetensors" in str(p)]
                assert name == "import" and len(absent) == len(error.problems), error


@each_page
def test_every_option_in_a_sentence_exists(page):
    options = all_options()
    for span in spans(page):
        for word in span.split():
            if span.startswith("--") and word.startswith("--"):
                assert word.partition("=")[0] in options, span


@each_page
def test_every_make_target_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    for line in lines(page):
        if match := re.match(r"make (\w+)", line):
            assert f"\n{match[1]}: " in makefile, line


@each_page
def test_every_recipe_and_path_exists(page):
    names = {path.stem for path in RECIPES.glob("*.yaml")} | set(DATASETS.names())
    folders = r"(?:cnnbench|docs|recipes|scripts|tests)/"
    for line in lines(page):
        for path in re.findall(rf"(?<![\w/.]){folders}[^\s:,;)]*", line):
            if "NAME" not in path and "FAMILY" not in path and not PLACEHOLDER.fullmatch(path):
                assert (ROOT / path).exists(), path
        if re.fullmatch(r"\w+_(cifar10|cifar100|imagenet|digits|folder)(_\w+)?", line):
            assert line in names, line


@each_page
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if section:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert section in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_page
def test_nothing_is_left_to_be_filled_in(page):
    assert not re.search(r"@@|TODO|FIXME|XXX", page.read_text())


def test_its_tables_are_those_of_the_results_that_are_kept():
    pages = runpy.run_path(str(ROOT / "scripts" / "results.py"))["pages"]()
    assert set(pages) == {README, ROOT / "docs" / "results.md"}
    for page, text in pages.items():
        assert page.read_text() == text, page
    texts = "".join(page.read_text() for page in PAGES)
    marks = re.findall(r"^<!-- table: (\w+) -->$", texts, re.MULTILINE)
    assert sorted(marks) == ["exports", "summary", "trained"]


def test_the_exit_codes_are_those_of_the_errors():
    from cnnbench import errors
    from cnnbench.cli.app import INTERRUPTED, UNEXPECTED

    text = (ROOT / "docs" / "reliability.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {k.exit_code for k in kinds if issubclass(k, errors.CnnbenchError)}
    assert listed == codes - {errors.CnnbenchError.exit_code} | {0, INTERRUPTED, UNEXPECTED}


def test_the_rooms_are_listed_in_their_order():
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text()
    table = text.partition("| room |")[2].partition("\n\n")[0]
    there = [r for r in ROOMS if (PACKAGE / r).is_dir() or (PACKAGE / f"{r}.py").is_file()]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == there


def test_every_command_is_in_the_readme_and_in_the_help():
    shown = CliRunner().invoke(cli, ["--help"]).output
    for name in cli.commands:
        assert f"`cnnbench {name}" in README.read_text() and name in shown, name
