#!/bin/sh
# Install one peer in an environment of its own, from its requirements file beside this script.
#
#     sh benchmarks/throughput/peers/install.sh NAME FOLDER [PYTHON]
#
# NAME is llamafactory, axolotl, soup, unsloth, or bitsandbytes: the last goes into a plain folder, which only the
# contestants that need it put on their path (PEFT imports it wherever it finds it).
# torch goes first and alone, in tunesmith's own version, so that pip takes the same CPU build for all; a peer's
# other packages follow from its own requirements. torchvision and the compiled part of torchaudio are removed again:
# their builds link against CUDA and do not load beside a CPU build of torch; training on text needs neither.
# FOLDER/NAME/install.log holds what pip said, FOLDER/NAME/.ready the versions when it worked.
set -u
name=$1
place=$2/$1
python=${3:-python3.11}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$root/constraints.txt")
[ -f "$place/.ready" ] && exit 0
mkdir -p "$place"
log=$place/install.log
if [ "$name" = bitsandbytes ]; then
  "$python" -m pip install --quiet --no-deps --target "$place" --requirement "$here/$name.txt" && touch "$place/.ready"
  exit
fi
{
  "$python" -m venv "$place" &&
    "$place/bin/pip" install --quiet --no-cache-dir --upgrade pip wheel setuptools &&
    "$place/bin/pip" install --no-cache-dir "$torch" &&
    echo "$torch" >"$place/torch.txt" &&
    "$place/bin/pip" install --no-cache-dir --constraint "$place/torch.txt" --requirement "$here/$name.txt" &&
    "$place/bin/pip" uninstall --yes torchvision &&
    find "$place" -path '*/torchaudio/lib/*.so' -delete
} >"$log" 2>&1 || {
  echo "$name: not installed; the last lines of $log:" >&2
  tail -n 15 "$log" >&2
  exit 1
}
"$place/bin/pip" freeze >"$place/.ready"
echo "$name: $(grep -c . "$place/.ready") packages under $place"
