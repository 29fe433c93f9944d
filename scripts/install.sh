#!/bin/sh
# Makes the virtual environment VENV and installs this checkout into it.
# Usage: scripts/install.sh VENV [EXTRA]
# Without a GPU it takes PyTorch's CPU build: any other would pull gigabytes of CUDA libraries.
set -eu
venv=$1
extra=${2:+[$2]}
torch_version=2.13.0

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; install it, or name it with PYTHON=/path/to/python3.11." >&2
    exit 2
fi
if [ ! -x "$venv/bin/python" ] && ! "$python" -m venv "$venv"; then
    echo "error: $python cannot make virtual environments; install its venv package (python3-venv on Debian)." >&2
    exit 2
fi

pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; }
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && [ "$(uname -s)" = Linux ] && ! has_gpu; then
    echo "installing PyTorch $torch_version (CPU)"
    $pip install "torch==$torch_version+cpu" 2>/dev/null ||
        $pip install "torch==$torch_version+cpu" --index-url https://download.pytorch.org/whl/cpu
fi
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/tuneserve/wheels
mkdir -p "$wheels"
if [ "$extra" = "[dev]" ]; then
    # PyPI has llama-cpp-python as source only: compiled once for all clones, which takes minutes.
    echo "building llama-cpp-python, unless $wheels has it"
    $pip wheel --no-deps --constraint constraints.txt --find-links "$wheels" --wheel-dir "$wheels" llama-cpp-python
fi
echo "installing tuneserve and what it needs"
$pip install --constraint constraints.txt --find-links "$wheels" --editable ".$extra"
