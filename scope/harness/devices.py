"""Which devices there are."""

import torch

from scope.errors import ScopeError


def check_device(name: str) -> None:
    """See that torch has a device of this name here.

    Raises:
        ScopeError: with what would do.
    """
    expected = "expected cuda, cuda:1 ... or cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ScopeError(f"--device {name}: torch knows no such device; {expected}") from None
    if device.type == "cpu" and (device.index or 0) > 0:
        raise ScopeError(f"--device {name}: torch has one cpu; use --device cpu")
    if device.type == "meta":
        raise ScopeError(f"--device {name}: nothing is computed there; {expected}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ScopeError(f"--device {name}: torch sees no GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ScopeError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here")
    if device.type not in ("cuda", "cpu"):
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, ImportError):
            raise ScopeError(f"--device {name}: not available here; {expected}") from None
