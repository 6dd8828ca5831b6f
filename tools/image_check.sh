#!/usr/bin/env bash
# Builds a target of the Dockerfile (cpu, or gpu) without a container engine, on a Debian base made here instead of the ones
# that the Dockerfile names, runs it as an engine would, and computes a gradient through it. Needs root, and the network.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-cpu}
work=$PWD/build/image-check
base_tree=$work/debian.tar
image=localhost/exodus-service:$target
check=.venv/bin/python

say() { printf 'image-check: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

[[ $target == cpu || $target == gpu ]] || die "target: expected cpu or gpu, got $target"
[[ $(id -u) == 0 ]] || die "not run: chroot and mount need root"
for tool in buildah debootstrap; do
    command -v $tool > /dev/null || die "not run: there is no $tool; apt-get install --yes buildah debootstrap"
done
[[ $target == cpu || -x /usr/local/cuda/bin/nvcc ]] || die "not run: the target gpu needs a CUDA toolkit in /usr/local/cuda"

engine=(buildah --root "$work/storage" --runroot "$work/storage-run" --storage-driver "${STORAGE_DRIVER:-overlay}")
container=
service=

clean_up() {
    # Not unshare but its child, process 1 of the namespace: all of it ends with that.
    [[ -z $service ]] || { pkill -KILL --parent "$service"; wait "$service"; } 2> /dev/null || true
    [[ -z $container ]] || "${engine[@]}" rm "$container" > /dev/null || true
    umount --recursive "$work/storage/overlay" 2> /dev/null || true
    rm -rf --one-file-system "$work/storage" "$work/storage-run" "$work/pip.conf" "$work/service.log" "$work/debian"
}
trap clean_up EXIT
clean_up
mkdir -p "$work"

# Stands in for python:slim and the CUDA images: Debian with a Python. Kept for the next run.
if [[ ! -f $base_tree ]]; then
    say "making a Debian base"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/debian" > "$work/debootstrap.log"
    tar --create --directory "$work/debian" --exclude=./var/cache/apt/archives/*.deb --exclude=./var/lib/apt/lists/* \
        --file "$base_tree.part" .
    mv "$base_tree.part" "$base_tree"
    rm -rf "$work/debian"
fi
container=$("${engine[@]}" from scratch)
"${engine[@]}" add --quiet "$container" "$base_tree" / > /dev/null
"${engine[@]}" commit --quiet --rm "$container" localhost/debian > /dev/null
container=

# The way to the package index is this machine's: its certificates, and its folder of wheels if it has one. The CUDA build of
# torch must not be replaced by a CPU build that lies there.
options=(--build-arg CPU_BASE=localhost/debian --build-arg CUDA_DEVEL=localhost/debian --build-arg CUDA_BASE=localhost/debian)
options+=(--volume "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}:/mnt/certificates.crt:ro")
printf '[global]\ncert = /mnt/certificates.crt\ntimeout = 180\ndisable-pip-version-check = true\n' > "$work/pip.conf"
if [[ $target == cpu && -d ${PIP_FIND_LINKS:-} ]]; then
    options+=(--volume "$PIP_FIND_LINKS:/mnt/find-links:ro")
    echo "find-links = /mnt/find-links" >> "$work/pip.conf"
fi
[[ $target == cpu ]] || options+=(--volume "$(realpath /usr/local/cuda):/usr/local/cuda:ro")
[[ -z ${CPU_TORCH_INDEX:-} ]] || options+=(--build-arg "CPU_TORCH_INDEX=$CPU_TORCH_INDEX")

say "building the target $target"
"${engine[@]}" bud --isolation chroot --format docker --target "$target" --tag "$image" \
    --secret "id=pip.conf,src=$work/pip.conf" "${options[@]}" . > "$work/build.log" 2>&1 \
    || { tail -n 40 "$work/build.log" >&2; die "the build failed; all of it is in $work/build.log"; }

# From here on as an engine runs it: user, environment and commands from the image, process 1 of its own, nothing writable but
# a temporary folder.
user='' stop_signal='' environment=() command=() probe=()
eval "$("${engine[@]}" inspect --type image "$image" | "$check" -c '
import json, shlex, sys

config = json.load(sys.stdin)["Docker"]["config"]
for name, words in [
    ("user", [config["User"]]),
    ("stop_signal", [config["StopSignal"]]),
    ("environment", config["Env"]),
    ("command", config["Entrypoint"] + config["Cmd"]),
    ("probe", config["Healthcheck"]["Test"][1:]),
]:
    print(f"{name}=({shlex.join(words)})")
')"
container=$("${engine[@]}" from "$image")
root=$("${engine[@]}" mount "$container")
port=$("$check" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
inside=(env --ignore-environment "${environment[@]}" EXODUS_DEVICE=cpu "EXODUS_PORT=$port" EXODUS_STATE_DIR=/var/lib/exodus)
inside+=(chroot "--userspec=$user" "$root")

# shellcheck disable=SC2016 # expanded by the inner shell
unshare --mount --pid --fork bash -c '
    set -e
    mount --bind "$1" "$1"
    mount -o remount,bind,ro "$1"
    mount --types proc proc "$1/proc"
    mount --types tmpfs tmpfs "$1/tmp"
    mount --types tmpfs --options "uid=$2,mode=700" tmpfs "$1/var/lib/exodus"
    mount --rbind /dev "$1/dev"
    shift 2
    exec setpriv --no-new-privs "$@"
' - "$root" "${user%%:*}" "${inside[@]}" "${command[@]}" 2> "$work/service.log" &
service=$!

ready() { "$check" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=2)' "$url/readyz" 2> /dev/null; }
for _ in $(seq 60); do
    ! ready || break
    kill -0 $service 2> /dev/null || { cat "$work/service.log" >&2; die "the service ended"; }
    sleep 1
done
ready || { cat "$work/service.log" >&2; die "/readyz did not answer within a minute"; }
say "/readyz answers 200"

process=$(pgrep --parent $service)
field() { awk -v name="$1:" '$1 == name { print $NF }' "/proc/$process/status"; }
[[ $(field Uid) != 0 && $(field Uid) == "${user%%:*}" ]] || die "expected the user ${user%%:*} and not root, got $(field Uid)"
[[ $(field NSpid) == 1 ]] || die "expected it to be process 1, got $(field NSpid)"
say "it runs as user $(field Uid), process $(field NSpid)"

refusal=$(nsenter --target "$process" --mount touch "$root/opt/exodus/written" 2>&1) && die "the root file system could be written to"
[[ $refusal == *"Read-only file system"* ]] || die "expected a read-only root file system, got: $refusal"
say "its root file system is read-only"

"${inside[@]}" "${probe[@]}" || die "the health check of the image failed"
say "the health check of the image passes"

"$check" - "$url" "$target" << 'END'
import sys

import torch

import exodus_core
from exodus_client import LIF, Client, Exponential

url, target = sys.argv[1:]
torch.manual_seed(0)
membrane, grad_output = torch.randn(2, 8, 100, 64).unbind()
with Client(url) as client:
    for method in ("exodus", "slayer", "bptt"):
        served = client.gradients(
            method=method, neuron=LIF(alpha=0.95), surrogate=Exponential(), membrane=membrane, grad_output=grad_output
        ).grad_input
        local = exodus_core.lif_gradient(
            membrane, grad_output, 0.95, surrogate=exodus_core.surrogate.Exponential(), method=method
        ).input
        if not torch.equal(served, local):
            raise SystemExit(f"image-check: {method}: the gradient is off by {float((served - local).abs().max())}")
        print(f"image-check: the gradient of {method}, {tuple(served.shape)}, is the local one, bit for bit")
    layers = [{"kind": "linear", "in_features": 8, "out_features": 3}, {"kind": "lif", "alpha": 0.9}]
    model = client.create_model(layers=layers, optimizer={"kind": "adam"}, seed=0)
    spikes, targets = torch.rand(4, 20, 8) < 0.3, torch.arange(4) % 3
    for _ in range(10):
        step = model.step(spikes, targets, loss="sum_over_time_ce").result()
    print(f"image-check: a model took {step.sequence} steps, kept in the volume: {model.info().durable is not None}")
    library = client.capabilities()["core"]["cuda_library"]
    print(f"image-check: CUDA library: {library}")
    if target == "gpu" and not library["loaded"]:
        raise SystemExit("image-check: the image for a GPU cannot load its CUDA library")
END

for compiler in cc c++ gcc g++ clang nvcc; do
    ! "${inside[@]}" sh -c "command -v $compiler" || die "the image has a compiler"
done
say "it has no compiler"

pinned() { sed -E 's/\+cpu$//' | tr 'A-Z_' 'a-z-'; }
installed=$("${inside[@]}" python3 -m pip --no-cache-dir freeze | grep --invert-match '^exodus')
unpinned=$(pinned <<< "$installed" | grep --invert-match --line-regexp --fixed-strings \
    --file <(cat requirements.lock docker/gpu.lock | pinned) || true)
[[ -z $unpinned ]] || die "expected the versions of requirements.lock and docker/gpu.lock, got $unpinned"
say "its packages have the versions of the lock, with $(grep '^torch==' <<< "$installed")"

kill -s "$stop_signal" "$process"
timeout 45 tail --pid "$service" --follow /dev/null || die "it has not ended 45 s after $stop_signal"
status=0
wait $service || status=$?
service=
[[ $status == 0 ]] || die "expected exit status 0 after $stop_signal, got $status"
say "it ends with status 0 on $stop_signal"

size() { "${engine[@]}" images --format '{{.Size}}' "$1"; }
say "size of $image: $(size "$image"), of which the Debian base: $(size localhost/debian)"
say "passed"
