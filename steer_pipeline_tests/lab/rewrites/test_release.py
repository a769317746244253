"""Rollbacks go back in the history of releases, again and again."""

import pytest

from steer_pipeline.lab.rewrites import release


@pytest.mark.parametrize(
    "log,back_to",
    [
        ("+a +b +c", "b"),
        ("+a +b +c -b", "a"),
        ("+a +b +c -b +d", "b"),
        ("+a +b +a", "b"),
        ("+a +b -a -b", "a"),  # forward by name
        ("+a +b =b", "a"),
        ("+a +b ?c", "a"),  # logged, but the pointer never moved
        ("z+a", "z"),  # the log of what was before is lost
        ("+a", None),
        ("", None),
    ],
)
def test_the_history_is_a_stack(log, back_to):
    kinds = {"+": "promote", "-": "rollback", "=": "keep", "?": "promote"}
    entries, previous = [], "none"
    for word in log.split():
        before, kind, version = word[:-2] or previous, word[-2], word[-1]
        entries.append(release.Entry(None, "paranoid", kinds[kind], version, before, 1, "run", kind != "?"))
        previous = version
    if back_to is None:
        with pytest.raises(LookupError, match="no earlier release"):
            release.former(entries[::-1], "paranoid")
    else:
        assert release.former(entries[::-1], "paranoid") == back_to
