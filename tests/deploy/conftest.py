"""A real core, as the integration tests have it."""

from tests.integration.conftest import core

__all__ = ["core"]
