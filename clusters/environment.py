"""What Ray reads from the environment when it is imported; call `prepare` before the first `import ray`."""

from __future__ import annotations

import logging
import os

from clusters.profile import Profile


def prepare(profile: Profile) -> None:
    """Set what a run needs, leaving alone what the user has set.

    A local Ray gets the address 127.0.0.1, for which alone its servers listen on loopback only; Ray reads this switch,
    named after the systems where it is the default, on all of them.
    """
    defaults = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_TRAIN_V2_ENABLED": "1"}
    if profile.address == "local":
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Token authentication is what we want; being told so at every start is not.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
