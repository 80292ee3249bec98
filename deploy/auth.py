"""Ray's token: of a private cluster, and of one elsewhere. Imported before ray is."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from buffer.addresses import cluster_address
from buffer.config import RunTable
from buffer.errors import ConfigError

TOKEN, FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def lock_private_cluster(run: RunTable) -> None:
    """Gives a private cluster a token of its own, unless the user chose an authentication mode.

    Ray reads the mode when it is imported, so this comes first. The token lives in the environment
    of this run only: Ray's own way, a file in the home folder, would switch authentication on for
    clusters started later.
    """
    if cluster_address(run) is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ[TOKEN] = secrets.token_hex(32)


def given_token() -> str | None:
    """The token for somebody else's cluster, if the user gave one; Ray uses it from here on.

    White space around it goes, in the environment too: Ray would make a header of it that no
    request can have, and an error with the token in it.

    Raises:
        ConfigError: its file cannot be read, or it can be no token.
    """
    token, path = os.environ.get(TOKEN), os.environ.get(FILE)
    if token is None and path is None:
        return None
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    where = TOKEN
    if token is None and path is not None:
        where = f"{FILE} ({path})"
        try:
            token = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: it is no text, hence no token") from None
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{where}: it is not one line of ASCII, hence no token; it was not sent")
    if TOKEN in os.environ:
        os.environ[TOKEN] = token
    return token or None
