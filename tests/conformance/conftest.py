"""The fixtures of the integration tests: conformance runs against a real core."""

from tests.integration.conftest import core, stubs

__all__ = ["core", "stubs"]
