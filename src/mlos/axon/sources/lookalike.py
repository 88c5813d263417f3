"""Publishers' names that look like another's: the mark of a typing error, or of somebody who hopes for one."""

from __future__ import annotations

from collections.abc import Iterable


def lookalike(name: str, known: Iterable[str]) -> str | None:
    """The known name that is one edit from ``name`` (a letter added, left out, changed, or two swapped).

    A name that is known itself looks like nobody else's. Case does not count as an edit, and is one alone.
    """
    names = sorted(known)
    if name in names or not name:
        return None
    return next((other for other in names if _one_edit(name.lower(), other.lower())), None)


def _one_edit(left: str, right: str) -> bool:
    if len(left) > len(right):
        left, right = right, left
    if len(right) - len(left) > 1:
        return False
    start = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    if len(left) < len(right):
        return left[start:] == right[start + 1 :]
    swapped = (
        left[start : start + 2] == right[start : start + 2][::-1] and left[start + 2 :] == right[start + 2 :]
    )
    return swapped or left[start + 1 :] == right[start + 1 :]
