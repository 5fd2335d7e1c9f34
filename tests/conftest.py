"""Settings of all tests."""

import os

from hypothesis import settings

# CI looks at the same examples every time: what it says of a change is about the change. Elsewhere new ones are found.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
