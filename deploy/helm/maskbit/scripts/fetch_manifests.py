"""The init container of gateways whose bundles are on the Hub: fetches the bundle.json of each, nothing more.

Usage: fetch_manifests.py FOLDER NAME=OWNER/NAME@REVISION…; writes FOLDER/NAME/bundle.json.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from huggingface_hub import hf_hub_download


def main(folder: str, *models: str) -> int:
    """Fetch all; returns the exit code, after one line about what could not be had."""
    for model in models:
        name, _, source = model.partition("=")
        ref, _, revision = source.partition("@")
        try:
            found = hf_hub_download(ref, "bundle.json", revision=revision)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"the bundle.json of hf://{source} cannot be had: {reason}", file=sys.stderr)
            return 1
        target = Path(folder, name)
        target.mkdir(exist_ok=True)
        shutil.copyfile(found, target / "bundle.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
