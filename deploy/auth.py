"""The lock of a private Ray cluster. Imported before ray is."""

from __future__ import annotations

import os
import secrets

from buffer.addresses import cluster_address
from buffer.config import RunTable


def lock_private_cluster(run: RunTable) -> None:
    """Gives a private cluster a token of its own, unless the user chose an authentication mode.

    Ray reads the mode when it is imported, so this comes first. The token lives in the environment
    of this run only: Ray's own way, a file in the home folder, would switch authentication on for
    clusters started later.
    """
    if cluster_address(run) is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
