"""Rows that are compared are the same rows. In: ids of two sides. Out: nothing, or an error that names the missing."""

from collections import Counter
from collections.abc import Sequence

_SHOWN = 5


def require_same_rows(own: Sequence[str], base: Sequence[str], what: str, other: str = "base") -> None:
    """Both sides hold the same ids, each once, in any order.

    Args:
        what: whose the first ids are, for the message; `other` whose the second.

    Raises:
        ValueError: an id twice, or ids that only one side has; they are named.
    """
    for ids, name in ((own, what), (base, other)):
        if twice := [row_id for row_id, count in Counter(ids).items() if count > 1]:
            raise ValueError(f"{name}: row {twice[0]} occurs {Counter(ids)[twice[0]]} times; keep one")
    missing, extra = sorted(set(base) - set(own)), sorted(set(own) - set(base))
    if missing or extra:
        parts = [f"{what} lacks {_some(missing)}"] if missing else []
        parts += [f"{other} lacks {_some(extra)}"] if extra else []
        raise ValueError(f"{'; '.join(parts)}: no difference is taken; measure both sides on the same rows")


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
