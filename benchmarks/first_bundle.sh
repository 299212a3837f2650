#!/bin/sh
# From nothing to a verified bundle on another machine, each step timed: a new environment, the
# package, MobileNetV1 1.0/224 for a Raspberry Pi 4, the two files copied, the runner's own proof.
# The other machine is QEMU's Cortex-A72 with an empty environment and nothing but these files.
#
#   sh benchmarks/first_bundle.sh [DIR]       in a clone; DIR (new) gets everything, default /tmp/...
#
# Needs Python 3.11, g++-aarch64-linux-gnu (or `pip install '.[cross]'` in place of '.') and, for
# the other machine, qemu-user.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
place=${1:-$(mktemp -d)}
mkdir -p "$place/board/v1.bundle/bin"

timed() {
  name=$1
  shift
  start=$(date +%s)
  "$@" > "$place/log" 2>&1 || { cat "$place/log"; exit 1; }
  printf '%4d s  %s\n' $(($(date +%s) - start)) "$name"
}

begun=$(date +%s)
timed "a new virtual environment" python3 -m venv "$place/venv"
timed "pip install" "$place/venv/bin/pip" install "$here"
cd "$place"
timed "tvm-mobilenet build mobilenet_v1 --target rpi4" \
  venv/bin/tvm-mobilenet build mobilenet_v1 --target rpi4 -o v1.bundle
timed "copying two files" cp v1.bundle/bin/runner board/v1.bundle/bin/
cp v1.bundle/samples.npz board/v1.bundle/
cd board
timed "the runner's proof on the other machine" \
  env -i "$(command -v qemu-aarch64)" -cpu cortex-a72 v1.bundle/bin/runner
cat "$place/log"
printf '%4d s  in all, in %s\n' $(($(date +%s) - begun)) "$place"
