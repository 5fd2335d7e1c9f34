"""An engine in a temporary directory, as the tests of the engine have it."""

from tests.engine.conftest import bench

__all__ = ["bench"]
