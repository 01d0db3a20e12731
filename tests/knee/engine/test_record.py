"""What a run records of the software that it was made with."""

from __future__ import annotations

from knee.engine.record import versions


def test_versions_name_what_numbers_depend_on() -> None:
    found = versions()
    assert {"python", "dcmt", "torch", "timm", "numpy"} <= set(found)
    assert all(found.values())
