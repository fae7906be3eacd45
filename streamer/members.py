"""Before the ensemble is loaded: make its untrained members where they are asked for, and say so."""

from __future__ import annotations

from streamer.config import ClassifyConfig
from streamer.engines import UNTRAINED, ensure_untrained
from streamer.errors import UntrainedError


def missing_untrained(config: ClassifyConfig) -> list[str]:
    """Configured members that `ensure_untrained` would make."""
    known = {f"untrained/{name}" for name in UNTRAINED}
    return [
        member
        for member in (*config.members, *config.shadow)
        if member in known and not (config.engines / f"{member}.json").is_file()
    ]


def prepare_members(config: ClassifyConfig) -> None:
    """Make missing untrained members, a few seconds, if they are allowed.

    Raises UntrainedError if they are not, so that nothing is made in vain; ModelError if they cannot be made.
    """
    missing = missing_untrained(config)
    if missing and not config.allow_untrained:
        raise UntrainedError(
            f"{', '.join(missing)}: random weights, never trained, so their scores would mean nothing; name "
            f"trained members in classify.members, or pass --allow-untrained to try the plumbing"
        )
    if missing:
        ensure_untrained(config)
