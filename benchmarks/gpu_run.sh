#!/usr/bin/env bash
# What a GPU that is there for a quarter of an hour has to tell, in the order of its worth; each step keeps its results.
#   [CPT_DATA_DIR=…] benchmarks/gpu_run.sh OUT [STEP ...]
# Steps: tests races tuning kernels resnet50 resnet74 gpt learning; all of them without a name, which can take 20 minutes:
# where time is short, name some in each of several calls. Tests and the sanitizer run beside each other, everything that
# is timed runs alone. PYTHON names the interpreter. SECONDS_EACH bounds the steps that can be cut short (60). OUT gets
# one file, results.tar.gz, made anew after each step; one that is there is unpacked first, so that calls add up.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

known="tests races tuning kernels resnet50 resnet74 gpt learning"
out=${1:?Expected a folder for the results: benchmarks/gpu_run.sh OUT [STEP ...]}
shift
steps=${*:-$known}
for step in $steps; do
  [[ " $known " == *" $step "* ]] || { echo "Expected steps among $known, but got $step" >&2; exit 2; }
done
python=${PYTHON:-python3}
each=${SECONDS_EACH:-60}
mkdir -p "$out"
archive=$(realpath "$out")/results.tar.gz
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
[[ ! -f $archive ]] || tar -xzf "$archive" -C "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/cli:$PWD/serving${PYTHONPATH:+:$PYTHONPATH}"

wants() { [[ " $steps " == *" $1 "* ]]; }
began=$SECONDS
say() { echo "[$((SECONDS - began)) s] $*"; }
keep() { tar -czf "$archive.new" -C "$out" . && mv "$archive.new" "$archive"; }

"$python" -c "import pytest, cpt_deploy.training" || { echo "Expected $python to import pytest and cpt_deploy" >&2; exit 2; }

if wants races; then
  PYTHON=$python timeout 240 .ci/race-check >"$out/races.log" 2>&1 &
fi
if wants tests; then
  timeout -s INT -k 10 300 "$python" -m pytest -q -n 6 -m gpu -W default -p no:cacheprovider tests/unit/quantization tests/unit/training \
    >"$out/tests.log" 2>&1
  say "tests: $(tail -1 "$out/tests.log")"
fi
wait
if wants races; then
  say "races:" && grep -E '^==|passed|failed|ERROR SUMMARY|RACECHECK SUMMARY' "$out/races.log"
fi
keep
if wants tuning; then
  timeout -k 10 180 "$python" benchmarks/gpu_tuning.py --results "$out" >"$out/tuning.log" 2>&1
  say "tuning: $?"
  keep
fi
for part in kernels resnet50 resnet74 gpt; do
  if wants "$part"; then
    timeout -k 10 $((2 * each)) "$python" benchmarks/training_gpu.py --parts "$part" --seconds "$each" --results "$out" \
      >"$out/$part.log" 2>&1
    say "$part: $?"
    keep
  fi
done
if wants learning; then
  timeout -s INT -k 10 $((each + 120)) "$python" benchmarks/learning_gpu.py --seconds "$each" --models resnet38 --seeds 2 --keep --folder "$out/runs" --results "$out" \
    >"$out/learning.log" 2>&1
  say "learning: $?"
  keep
fi
