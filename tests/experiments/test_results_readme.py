"""README's tables are those of docs/results."""

from experiments.results.code import ROOT
from experiments.results.readme import included


def test_blocks_are_replaced_by_the_files_without_their_titles(tmp_path):
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    (folder / "one.md").write_text("# One\n\n| a |\n|---|\n| 1 |\n\nMade by `make one`.\n", encoding="utf-8")
    text = (
        "Before\n<!-- from docs/results/one.md -->\nold\n<!-- end -->\nbetween\n"
        "<!-- from docs/results/two.md -->\nkept\n<!-- end -->\nafter\n"
    )
    once = included(text, tmp_path)
    assert once == text.replace("old\n", "| a |\n|---|\n| 1 |\n\nMade by `make one`.\n")
    assert included(once, tmp_path) == once


def test_readme_shows_what_the_files_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert included(text, ROOT) == text
