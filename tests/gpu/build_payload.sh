#!/usr/bin/env bash
# Packs the two real engines for a GPU box without network that has Python 3.12 and torch 2.11.0+cu130: SGLang
# 0.5.15.post1 and vLLM 0.24.0, each in a folder of its own, in parts that are small enough for slow or limited ways in.
# Needs: pip, unzip, zstd, hardlink (util-linux). On the box: cat engines.tar.zst.* | bin/zstd -dc --long=30 | tar x
#
# Left out: FlashAttention's, FlashMLA's and DeepGEMM's kernels, kernels for sm_100 alone, CUTLASS's examples. So the
# engines run with triton attention (catalogued as the fallback), which tests/gpu/stacks.yml declares.
# Usage: build_payload.sh OUT [PART_SIZE]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build_payload.sh OUT [PART_SIZE]}
part=${2:-56M}
mkdir -p "$out/bin"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

platforms=()
for glibc in 35 34 31 28 27 26 24 17 12 5; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

fetch() {  # FOLDER REQUIREMENT...
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d "$1" "${@:2}"
}

unpack() {  # FOLDER ENGINE: every wheel of the folder into the engine's site
    mkdir -p "$work/sites/$2"
    for wheel in "$1"/*.whl; do
        unzip -qo "$wheel" -d "$work/sites/$2"
    done
}

fetch "$work/sglang" -r "$here/requirements-sglang.txt" sglang==0.5.15.post1
fetch "$work/kernel" sglang-kernel==0.4.4
fetch "$work/flashinfer" flashinfer-python==0.6.12
unpack "$work/sglang" sglang
unpack "$work/flashinfer" sglang
unzip -qo "$work"/kernel/*.whl -d "$work/sites/sglang" \
    -x 'sgl_kernel/flash_ops*' 'sgl_kernel/sm100/*' 'sgl_kernel/flashmla_ops*'
(cd "$work/sites/sglang" && rm -rf jedi/third_party Cryptodome nvidia flashinfer/data/cutlass/{test,examples,docs,media,python,tools/{library,profiler}})

fetch "$work/vllm" -r "$here/requirements-vllm.txt"
fetch "$work/engine" vllm==0.24.0
unpack "$work/vllm" vllm
unzip -qo "$work"/engine/*.whl -d "$work/sites/vllm" -x 'vllm/vllm_flash_attn/*.so' vllm/vllm-rs \
    'vllm/third_party/fmha_sm100/*' 'vllm/third_party/deep_gemm/include/*' 'vllm/third_party/deep_gemm/*.so'
cat >"$work/sites/vllm/vllm/vllm_flash_attn/__init__.py" <<'P'
"""Stands in for FlashAttention, which is not packed: every question whether it can do something is answered no."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: False
P
rm -rf "$work"/sites/vllm/{cryptography*,sentry_sdk/integrations}
rm -rf "$work"/sites/*/{pycountry/locales,mistral_common/data}
find "$work/sites" -name '*.pyi' -delete
hardlink -q "$work/sites"  # both engines carry the same transformers, tokenizers and others

rm -f "$out"/engines.tar.zst.*
tar c --sort=name -C "$work/sites" . | zstd -T0 -19 --long=30 -q | split -b "$part" -d - "$out/engines.tar.zst."
cp -L "$(command -v zstd)" "$out/bin/"
for library in $(ldd "$(command -v zstd)" | awk '/liblz4|libzstd/ {print $3}'); do
    cp -L "$library" "$out/bin/"
done
ls -l "$out"
