"""What tests of verifiers that run programs ask for."""

from __future__ import annotations

import pytest

from tercet.sandbox.run import SandboxError, isolation


@pytest.fixture(scope="session")
def isolated() -> None:
    """Some isolation of programs; without any the test is skipped."""
    try:
        isolation()
    except SandboxError as error:
        pytest.skip(str(error))
