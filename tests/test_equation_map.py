"""docs/method.md says what the docstrings say; every equation has a home and every function of the method a source."""

from __future__ import annotations

import pytest

from tools import equation_map
from tools.equation_map import Place, cited, homeless, missing_references, references, wrong_references

PLACES = list(equation_map.read_places())


def place(docstring: str, name: str = "f", path: str = "nvg/layers/rope.py", is_dataclass: bool = False) -> Place:
    return Place(path, name, docstring, is_dataclass)


def test_every_equation_and_algorithm_line_has_a_function():
    assert homeless(PLACES) == []
    assert len(equation_map.NUMBERED) == 10 + 9 + 10  # equations, lines of Algorithm 1 and of Algorithm 2


def test_references_name_what_the_paper_has():
    assert wrong_references(PLACES) == []


def test_public_names_of_the_method_say_where_they_come_from():
    assert missing_references(PLACES) == []


def test_the_page_is_up_to_date():
    page = (equation_map.ROOT / equation_map.PAGE).read_text(encoding="utf-8")
    is_fresh = equation_map.rewrite(page, PLACES) == page  # apart, so that no diff of the page is shown
    assert is_fresh, "docs/method.md is stale: run `make docs`"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Eq. (4)-(5), App. A.2 and A.5", ["Eq. (4)", "Eq. (5)", "App. A.2", "App. A.5"]),
        ("Alg. 1 lines 2-4, 6, §2.1 (k = 2)", [*(f"Alg. 1 line {n}" for n in (2, 3, 4, 6)), "§2.1"]),
        ("Alg. 2 line 10, Table 2, Fig. 3", ["Alg. 2 line 10", "Table 2", "Fig. 3"]),
        ("§2.2.2 (8 + 2·8 + 20 + 20 at K = 8)", ["§2.2.2"]),
    ],
)
def test_citations_are_read(text, names):
    assert sorted(cited(text)) == sorted(names)


def test_paper_and_release_share_a_line_or_a_sentence():
    both = place("Does it.\n\nPaper: §2.1, App. A.4; Release: one draw\na sequence\n\nMore.")
    assert references(both, "Paper") == ["§2.1, App. A.4"]
    assert references(both, "Release") == ["one draw a sequence"]
    assert references(place("Draws the ids. Paper: Alg. 2 line 8"), "Paper") == ["Alg. 2 line 8"]


@pytest.mark.parametrize("text", ["Eq. (11)", "Alg. 1 line 12", "§2.9", "somewhere", "Table 7"])
def test_a_citation_that_is_not_in_the_paper_is_found(text):
    assert len(wrong_references([place(f"Does it.\n\nPaper: {text}")])) == 1


def test_an_equation_without_a_home_is_found():
    left = [one for one in PLACES if one.name != "structure_embedding"]
    assert [problem.split(" (structure")[0] for problem in homeless(left)] == ["Eq. (6)"]


@pytest.mark.parametrize(
    ("citation", "name"),
    [
        ("Alg. 1 line 2", "cluster_latents"),  # s_K
        ("Alg. 1 line 2", "quantize_ids"),  # c_0
        ("Eq. (7)", "stage_map"),  # the label of a stage, as sampling takes it
        ("Eq. (7)", "structure_from_embedding"),
        ("§2.2.2", "GeneratorLossConfig"),  # 10 % null condition
        ("§2.2.2", "Alignment"),
        ("App. B.1", "low_stages"),  # 68.55 %
        ("Fig. 7", "give_contents"),
    ],
)
def test_what_the_paper_says_is_found_where_it_says_it(citation, name):
    assert name in [one.name for one in equation_map.by_citation(PLACES)[citation]]


@pytest.mark.parametrize("words", ["β = 0.25", "weight 0.5 of RePA", "warm-up from 0.5 %"])
def test_numbers_that_the_paper_does_not_have_are_the_releases(words):
    assert any(words in text for one in PLACES for text in references(one, "Release"))
    assert not any(words in text for one in PLACES for text in references(one, "Paper"))


@pytest.mark.parametrize(
    "words", ["EMA weights of the tokenizer", "JPEG or of int8 features", "merged in pairs", "grids are square"]
)
def test_every_known_deviation_is_listed(words):
    texts = [text.lower() for text, _ in equation_map.deviations(PLACES)]
    assert any(words.lower() in text for text in texts)


def test_a_public_name_without_a_source_is_found():
    silent = place("Does it.")
    assert any("rope.py f:" in problem for problem in missing_references([*PLACES, silent]))
    excused = [
        place("Does it.", name="_private"),
        place("Does it.", name="check_it"),
        place("Holds it.", name="Box", is_dataclass=True),
        place("Does it.", path="nvg/records/shard.py"),
    ]
    assert missing_references([*PLACES, *excused]) == missing_references(PLACES)
    method = place("Does it.\n\nPaper: §2.1", name="f.forward")
    assert missing_references([*PLACES, silent, method]) == missing_references(PLACES)


def test_an_exception_that_nothing_needs_is_found(monkeypatch):
    monkeypatch.setitem(equation_map.PLUMBING, "gone", "was removed")
    assert "PLUMBING names gone, which needs no exception" in missing_references(PLACES)


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """One module whose docstrings place every equation, and a page with the three pairs of markers."""
    everything = "Eq. (1)-(10), Alg. 1 lines 1-9, Alg. 2 lines 1-10"
    (tmp_path / "nvg").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "nvg" / "whole.py").write_text(
        f'"""All of it.\n\nDEVIATION: floats are\nfloat32.\n\nPaper: {everything}; Release: one line\n"""\n'
        "X = 1  # DEVIATION: and one\n# more here\n\n# another remark\n"
    )
    parts = [
        f"<!-- {name}: written by tools/equation_map.py -->\n<!-- end of {name} -->"
        for name in ("equations", "release", "deviations")
    ]
    page = tmp_path / "docs" / "method.md"
    page.write_text("\n".join(["# Title", *parts, "Tail."]) + "\n")
    monkeypatch.setattr(equation_map, "ROOT", tmp_path)
    monkeypatch.setattr(equation_map, "PLUMBING", {})
    return page


def test_check_refuses_a_stale_page_and_writing_mends_it(small_project, capsys):
    assert equation_map.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert equation_map.main([]) == 0
    assert equation_map.main(["--check"]) == 0
    page = small_project.read_text()
    assert "| Eq. (10) |" in page
    assert "* [`nvg/whole.py`](../nvg/whole.py): one line\n" in page
    assert "* Floats are float32. ([`nvg/whole.py`](../nvg/whole.py))\n" in page
    assert "* And one more here ([`nvg/whole.py`](../nvg/whole.py))\n" in page
    assert page.endswith("Tail.\n")
    small_project.write_text(page.replace("one line", "two lines"))
    assert equation_map.main(["--check"]) == 1


def test_a_page_without_markers_is_refused(small_project):
    small_project.write_text("# Title\n")
    with pytest.raises(ValueError, match="markers of 'equations'"):
        equation_map.main([])
