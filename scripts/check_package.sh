#!/bin/sh
# Builds the sdist and, from it, the wheel, into dist/; then runs what the wheel installs.
# Usage: scripts/check_package.sh VENV, an environment that has what tuneserve needs: only tuneserve itself is installed anew.
set -eu
unset PYTHONPATH
venv=$1
rm -rf dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$venv/bin/python" -m venv "$work/build"
"$work/build/bin/pip" --quiet --disable-pip-version-check install --constraint constraints.txt build
"$work/build/bin/python" -m build --outdir dist .

# Everything that belongs to the package is in both, with what is no Python: tables, templates, the page, C++.
git ls-files src/tuneserve | sed 's|^src/||' | LC_ALL=C sort >"$work/package"
"$venv/bin/python" -m zipfile --list dist/*.whl | cut -d' ' -f1 | LC_ALL=C sort >"$work/wheel"
"$venv/bin/python" -m tarfile --list dist/*.tar.gz | sed 's|^[^/]*/src/||; s| *$||' | LC_ALL=C sort >"$work/sdist"
for archive in wheel sdist; do
    missing=$(LC_ALL=C comm -23 "$work/package" "$work/$archive")
    [ -z "$missing" ] || { printf 'the %s lacks:\n%s\n' "$archive" "$missing" >&2; exit 1; }
done

"$venv/bin/python" -m venv "$work/run"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
# The packages of VENV are found after those of the new environment; a checkout that is installed there is not.
"$venv/bin/python" -c "$site" >"$("$work/run/bin/python" -c "$site")/needs.pth"
"$work/run/bin/pip" --quiet --disable-pip-version-check install --no-deps dist/*.whl

cd "$work"
run/bin/python -c 'import pathlib, tuneserve; assert pathlib.Path(tuneserve.__file__).is_relative_to(pathlib.Path("run").resolve())'
run/bin/tuneserve --version
run/bin/python -m tuneserve inspect demo:tickets
run/bin/tuneserve plan demo:tickets --hardware rtx4090 --report plan.html >/dev/null
grep -q '</html>' plan.html
run/bin/tuneserve keys add someone --file keys.toml >/dev/null
run/bin/tuneserve deploy demo:tickets deployment --target compose --api-key-file keys.toml --hardware cpu-4c-16GB
echo "the wheel runs"
