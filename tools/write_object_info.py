#!/usr/bin/env python3
"""Write the snapshot of the nodes of this version, which ``tests/host/server/test_object_info.py`` keeps.


Run it when a version is released, or when nodes of an unreleased version are meant to change.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.find import PACK, find_host
from harness.server.object_info import snapshot
from harness.server.serve import serve


def main() -> None:
    version = re.search(r'^version = "(.+)"$', (PACK / "pyproject.toml").read_text(), re.MULTILINE)[1]
    path = PACK / "tests" / "host" / "server" / "object_info" / f"{version}.json"
    path.parent.mkdir(exist_ok=True)
    with serve(find_host()) as server:
        path.write_text(json.dumps(snapshot(server), indent=1) + "\n")
    print(path.relative_to(PACK))


if __name__ == "__main__":
    main()
