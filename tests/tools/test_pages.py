"""What pages say holds: commands, files, keys, links, examples, figures; and the check finds what does not."""

from __future__ import annotations

import pytest

from tools.pages import figures, names
from tools.pages.__main__ import main, problems
from tools.pages.commands import commands, known_keys, problem_of
from tools.pages.sentences import mean_length, sentence_lengths
from tools.pages.text import ROOT, Page, pages

PAGES = pages()
PLAIN = ("docs/start/", "docs/tutorials/")  # read by those who know nothing yet
MOST_WORDS = 18


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_holds(page: Page) -> None:
    assert list(problems(page)) == []


def test_the_pages_are_read() -> None:
    assert len(PAGES) > 30
    assert sum(len(list(commands(page))) for page in PAGES) > 150
    assert sum(len(page.links) for page in PAGES) > 300
    assert len(known_keys()) > 500


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.startswith(PLAIN)], ids=lambda page: page.name)
def test_pages_for_newcomers_have_short_sentences(page: Page) -> None:
    assert mean_length(page) <= MOST_WORDS


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("nvg trian content", "nvg has no command trian"),
        ("nvg demo --dta x", "--dta"),
        ("nvg sample run=runs/demo num_per_clas=2", "num_per_clas is an unknown key"),
        ("nvg train content --config runs/x.yaml content.widht=64", "content.widht is an unknown key"),
        ("nvg train content --config content/d17.yaml", "d17"),
        ("nvg train content --config content/d16.yaml optimizer.micro_batch=0", "optimizer.micro_batch"),
        ("nvg train content … loop.engine=fast", "loop.engine"),
        ("nvg run demo/fashin.yaml", "fashin"),
        ("nvg plan content/d16.yaml --device abacus", "abacus"),
        ("nvg submit -- nvg precompute out=x", "out is an unknown key"),
        ("nvg --verson", "nvg has no --verson"),
        ("python benchmarks/gone.py", "there is no benchmarks/gone.py"),
        (".venv/bin/python -m tools.pages --sentence-lengths", "has no --sentence-lengths"),
        ("python -m tools.gone", "there is no module tools.gone"),
        ("torchrun --nproc-per-node 2 -m pipelines.train.gone", "there is no module pipelines.train.gone"),
        ("make coffee", "the Makefile has no coffee"),
        ('pip install ".[trian]"', "the package has no extra trian"),
        (".venv/bin/python -m pytest tests/gone", "there is no tests/gone"),
    ],
)
def test_a_command_that_would_be_refused_is_found(command: str, says: str) -> None:
    page = Page.of(f"Do this:\n\n    {command}\n")
    (found,) = [problem for _, one in commands(page) if (problem := problem_of(one))]
    assert says in found


@pytest.mark.parametrize(
    "command",
    [
        "nvg demo --data ~/pictures folder=runs/mine   # a remark",
        "nvg train content --config … loop.engine=plain",
        "OMP_NUM_THREADS=1 .venv/bin/nvg sample run=runs/demo classes='[3, 7]'",
        "nvg eval …",
        "nvg doctor && nvg verify runs/demo/records",
        "make quick",
        'pip install "nvg[app]"',
        "torchrun --nproc-per-node 2 -m pipelines.train.generator --config …",
    ],
)
def test_a_command_that_runs_is_none(command: str) -> None:
    found = list(commands(Page.of(f"Do this:\n\n    {command}\n")))
    assert found
    assert [problem for _, one in found if (problem := problem_of(one))] == []


def test_where_prompts_stand_the_rest_is_output() -> None:
    page = Page.of("    $ nvg doctor\n    nvg trian: no command\n")
    assert [command for _, command in commands(page)] == ["nvg doctor"]


def test_commands_may_go_over_lines() -> None:
    page = Page.of("    nvg sample run=runs/demo \\\n        num_per_class=2\n")
    assert [command for _, command in commands(page)] == ["nvg sample run=runs/demo num_per_class=2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[there](docs/gone.md)", "no such file"),
        ("[there](README.md#gone)", "no heading"),
        ("![picture](docs/gone.png)", "no such file"),
        ('<img src="docs/gone.png">', "no such file"),
        ("`nvg/granularity/gone.py`", "no such file"),
        ("`nvg/granularity/stages.py:gone`", "does not define gone"),
        ("`test_gone` in `pipelines/sources/test_tars.py::test_gone`", "does not define test_gone"),
        ("`demo/gone.yaml`", "configs/ has no such file"),
        ("`nvg.sampling.gone`", "there is no such name"),
        ("`loop.gone`", "no command has the key loop.gone"),
        ("`optimizer.micro_bach=4`", "no command has the key"),
        ("`--structure-frm`", "no command has the option"),
        ("```python\nmodel.sample(8, per_clas=2)\n```", "does not take per_clas"),
        ("```python\nmodel.smaple(8)\n```", "nvg.Model has no smaple"),
        ("```python\nnvg.laod('x')\n```", "there is no nvg.laod"),
        ("```python\nx = (\n```", "example"),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, says: str) -> None:
    found = [problem for _, problem in names.problems_of(Page.of(f"{text}\n"))]
    assert len(found) >= 1
    assert all(says in problem for problem in found)


def test_names_that_are_there_are_none() -> None:
    text = "`nvg/granularity/stages.py:balanced_split` `loop.engine=plain` `demo/fashion.yaml` `--keep` `nvg.load(…)`"
    assert list(names.problems_of(Page.of(f"{text} [x](docs/data.md#pixels) `results.json`\n"))) == []


FILE = "docs/results/demo.json"
ACCURACY = "runs.*.scores.generated.class_accuracy"


@pytest.mark.parametrize(
    "text",
    [
        f"reads 97.6 %<!-- {FILE}: {ACCURACY} --> of them",
        f"**97.6 %**<!-- {FILE}: {ACCURACY} -->",
        f"takes 7.9 minutes<!-- {FILE}: runs.*.seconds / 60 --> here",
        f"from 1.19<!-- {FILE}: min runs.*.scores.generated.fid --> on",
        f"3<!-- {FILE}: count runs.*.seconds --> seeds",
        "7 min 1 s: 421<!-- docs/results/demo.md --> seconds",
        "an H100 makes 137 images/s<!-- configs/content/d16.yaml: 137 images/s --> of them",
    ],
)
def test_a_figure_that_its_source_has_is_none(text: str) -> None:
    assert list(figures.problems_of(Page.of(text))) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"reads 96.7 %<!-- {FILE}: {ACCURACY} --> of them", "has 97.6 at"),
        (f"reads 97.6 %<!-- {FILE}: runs.*.scores.gone --> of them", "has no"),
        (f"reads 97.6 %<!-- {FILE} --> of them", "say where"),
        ("reads 97.6 %<!-- docs/results/gone.json: x --> of them", "is not there"),
        ("takes 422<!-- docs/results/demo.md: 421 (7 min 1 s) --> seconds", "does not have"),
        (f"a figure<!-- {FILE}: {ACCURACY} -->", "behind no figure"),
    ],
)
def test_a_figure_that_its_source_does_not_have_is_found(text: str, says: str) -> None:
    (found,) = [problem for _, problem in figures.problems_of(Page.of(text))]
    assert says in found


def test_a_page_that_gives_one_source_gives_all() -> None:
    sourced = f"reads 97.6 %<!-- {FILE}: {ACCURACY} --> of them"
    assert list(problems(Page.of(sourced, ROOT / "docs"))) == []
    (found,) = problems(Page.of(f"{sourced}, which takes 8 minutes.", ROOT / "docs"))
    assert "'8 minutes' has no source" in found


def test_words_of_a_sentence_are_counted() -> None:
    page = Page.of(
        "# A heading\n\nOne two three. Four five, see `nvg demo` e.g. here!\n\n* An item\n\nHere:\n\n    code\n"
    )
    assert sentence_lengths(page) == [3, 7, 2, 1]
    assert mean_length(page) == 3.25


def test_the_command_names_what_does_not_hold(tmp_path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("Here:\n\n    nvg gone\n")
    assert main([str(page)]) == 1
    assert capsys.readouterr().out == "page.md:3: `nvg gone`: nvg has no command gone\n"
    page.write_text("Here it is.\n")
    assert main([str(page)]) == 0
    assert main([str(page), "--sentences"]) == 0
