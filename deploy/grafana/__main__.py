"""Writes the dashboards into the folder ``dashboards`` beside: ``python -m deploy.grafana``.

No package of the distribution, on purpose: who runs ssdkd needs the files, not Grafana's SDK.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.buffer import BUFFER
from deploy.grafana.controller import CONTROLLER
from deploy.grafana.distillers import DISTILLERS
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.synthesizers import SYNTHESIZERS

FOLDER = Path(__file__).with_name("dashboards")
BOARDS = (OVERVIEW, SYNTHESIZERS, BUFFER, DISTILLERS, CONTROLLER)


def files() -> dict[str, str]:
    """The content of each file, by its name."""
    return {f"{board.uid}.json": _text(board.dashboard()) for board in BOARDS}


def _text(dashboard: object) -> str:
    return json.dumps(dashboard, cls=JSONEncoder, sort_keys=True, indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
