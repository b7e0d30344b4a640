"""These tests take up to an hour: `make hostile`, which is `pytest -m hostile`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "hostile" in str(config.getoption("-m")):
        return
    for item in items:
        if item.get_closest_marker("hostile"):
            item.add_marker(pytest.mark.skip(reason="takes long; run it with -m hostile"))
