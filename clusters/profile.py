"""Cluster profiles: where runs go, as small YAML files beside this module or anywhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SHIPPED: Final = Path(__file__).parent


class ProfileError(ValueError):
    """A profile that cannot be used; the message says which and why."""


class Profile(BaseModel):
    """One cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    description: str = ""
    """What this cluster is, for people."""
    address: str = "local"
    """`local` starts Ray on this machine for the run; `auto` joins the one already here; else `ray://HOST:PORT`."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """CPU cores that a local Ray may use; all by default."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that a local Ray may use; all by default."""


def load_profile(name: str) -> Profile:
    """The profile called `name`, or in the file `name`. Raises ProfileError."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        profile = Profile.model_validate(content)
    except FileNotFoundError:
        shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise ProfileError(f"no cluster profile {name!r}; shipped: {shipped}; or give a YAML file") from None
    except (yaml.YAMLError, ValidationError) as error:
        raise ProfileError(f"{file}: {error}") from None
    address = os.environ.get("RAY_ADDRESS")
    return profile.model_copy(update={"address": address}) if address and profile.address == "local" else profile
