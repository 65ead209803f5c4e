"""The file from which a training that was killed goes on."""

from pathlib import Path
from typing import Any

import torch

from scope.errors import ScopeError


def save_checkpoint(file: Path, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """Write it; a kill meanwhile leaves the last one as it was."""
    partial = file.with_suffix(".partial")
    torch.save({"settings": settings, **state}, partial)
    partial.replace(file)


def load_checkpoint(file: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What `save_checkpoint` was given. Raises ScopeError if it has other settings."""
    state: dict[str, Any] = torch.load(file, map_location=device)
    for name, value in settings.items():
        if state["settings"][name] != value:
            raise ScopeError(
                f"{file} was made with {name} {state['settings'][name]}, not {value}: "
                "give the same settings to go on, or another --out"
            )
    return state
