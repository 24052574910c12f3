#!/usr/bin/env python3
"""Write locales/en/nodeDefs.json from the nodes of this pack, as a server states them.

    python tools/make_locales.py

The other languages are written by hand: titles of all nodes, tooltips of the main ones. What they leave out stays
English.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.find import PACK, find_host
from harness.server.locales import english
from harness.server.serve import serve

PATH = PACK / "locales" / "en" / "nodeDefs.json"


def main() -> None:
    PATH.parent.mkdir(parents=True, exist_ok=True)
    with serve(find_host()) as server:
        PATH.write_text(json.dumps(english(server), indent=1, ensure_ascii=False) + "\n")
    print(PATH.relative_to(PACK))


if __name__ == "__main__":
    main()
