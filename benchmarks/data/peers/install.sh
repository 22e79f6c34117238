#!/bin/sh
# Install one peer of dedup.py and pipeline.py in an environment of its own, from its requirements file beside this script.
#
#     sh benchmarks/data/peers/install.sh NAME FOLDER [PYTHON]
#
# NAME is datatrove or textdedup; labelstudio for label_studio_check.py; or soup, whose environment benchmarks/throughput/peers/install.sh makes and which
# gets what its `data dedup` needs. Axolotl needs nothing more than benchmarks/throughput/peers/install.sh installs.
set -eu
place=$2/$1
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$place/bin/python" ] || "${3:-python3.11}" -m venv "$place"
"$place/bin/pip" install --quiet --requirement "$here/$1.txt"
