"""The object stores that tests of fetching share."""

from collections.abc import Generator
from contextlib import ExitStack

import pytest

from tests.object_stores import Servers


@pytest.fixture(scope="session")
def object_stores() -> Generator[Servers]:
    with ExitStack() as running:
        yield Servers(running)
