#!/usr/bin/env bash
# The three tasks with an environment, seeds 0 to 2 of each with equal options, all at once on one
# card; numbers and table in OUT. More overrides of rlkit may follow.
#   bash experiments/environments/h200.sh MODEL WORK OUT [OVERRIDE ...]
set -u
model=$1 work=$2 out=$3
shift 3
mkdir -p "$work" "$out"
start() {
  local name=$1
  shift
  timeout "${LIMIT:-235}" python3 -m rlkit model.source="$model" generator=vllm memory.budget=9GB memory.torch_threads=1 \
    tracker.console=plain tracker.plot=false tracker.report=false run_dir="$work/$name" "$@" > "$work/$name.log" 2>&1 &
}
for seed in ${SEEDS:-0 1 2}; do
  start calculator-"$seed" task=calculator seed="$seed" "$@"
  start lookup-"$seed" task=lookup seed="$seed" "$@"
  start guess_number-"$seed" task=guess_number seed="$seed" steps=24 "$@"
done
wait
grep -H "^evaluation" "$work"/*.log | sed "s|$work/||"
python3 experiments/environments/analyse.py "$work"/*-? > "$out/h200.json" 2> "$out/table.md"
cat "$out/table.md"
for log in "$work"/*.log; do echo "=== $log"; tail -c 3000 "$log"; done > "$out/logs.txt"
tar czf "$out/guess.tgz" -C "$work" guess_number-0/completions 2> /dev/null
