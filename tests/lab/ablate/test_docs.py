"""docs/ablations.md is true: it lists every idea and claim, and its links resolve."""

from minimal_vllm_lab.ablate.claims import CLAIMS
from minimal_vllm_lab.ablate.ideas import IDEAS
from tests.markdown import broken_links, read

TEXT = read("docs/ablations.md")


def test_every_link_resolves():
    assert broken_links("docs/ablations.md") == []


def test_the_table_has_every_idea_and_no_other():
    rows = TEXT.partition("| `--without` |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(IDEAS)


def test_the_shown_claims_are_the_current_ones():
    shown = " ".join(TEXT.split())
    for claim in CLAIMS.values():
        for words in (claim.title, claim.source, claim.published, claim.here):
            assert words in shown
