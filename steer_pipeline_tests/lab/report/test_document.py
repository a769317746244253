"""Blocks read the same as Markdown and as HTML, and no cell breaks out of its table."""

from steer_pipeline.lab.report.document import (
    Figure,
    Heading,
    Paragraph,
    Samples,
    Table,
    to_html,
    to_markdown,
)


def test_blocks_render_in_both_formats():
    blocks = [
        Heading("A & B"),
        Paragraph("see `x` and **y** < z"),
        Table(["name", "n"], [["a|b", "1"], ["c", "–"]], "caption"),
        Figure("plot", b"\x89PNG", "what it shows"),
        Samples("row 1", [("base", "one\ntwo *three*"), ("steered", "")]),
    ]
    markdown, page = to_markdown("T", blocks), to_html("T", blocks)
    assert "| a\\|b | 1 |" in markdown
    assert "| --- | ---: |" in markdown
    assert "![what it shows](plots/plot.png)" in markdown
    assert "> **base**: one two \\*three\\*" in markdown
    assert "(empty)" in markdown
    assert "<strong>y</strong> &lt; z" in page
    assert '<td class="n">1</td>' in page
    assert "<i>empty</i>" in page
