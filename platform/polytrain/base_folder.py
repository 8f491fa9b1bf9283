"""Where relative paths of a recipe begin.

That is the current folder, but not in a job submitted with `--working-dir`: there it is a copy, which Ray throws away
after the job, results and all.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "POLYTRAIN_FOLDER"
"""A cluster's machines name a folder in it that all of them see."""

_COPIES = "working_dir_files"
"""Where Ray unpacks what `--working-dir` brought, in the session's folder."""


def base_folder() -> Path:
    """POLYTRAIN_FOLDER where it is set; ~/polytrain in a copy that Ray made; the current folder elsewhere."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    here = Path.cwd()
    return Path("~/polytrain").expanduser() if _COPIES in here.parts else here
