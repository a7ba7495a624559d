#!/usr/bin/env bash
# SFT, then online DPO with a judge from it: three seeds at once on one card; then win rates against SFT and the base.
#   bash experiments/judge/h200.sh MODEL WORK OUT
# OPTIONS holds further overrides of all runs.
set -eu
model=$1 work=$2 out=$3 here=experiments/judge port=${PORT:-18933} judge=reward.functions.judge.options
export PYTHONPATH=${PYTHONPATH:-$PWD}
mkdir -p "$work" "$out"
python3 $here/posts.py "$work/data"
python3 $here/rule_judge.py "$port" & server=$!
trap 'kill $server' EXIT
sleep 2
run() { # NAME OVERRIDES...
  python3 -m rlkit model.source="$model" task=dataset task.path="$work/data/train.jsonl" task.eval_path="$work/data/eval.jsonl" \
    +task.columns.prompt=prompt +task.columns.answer=answer +task.columns.draft=draft task.max_completion_length=48 task.max_prompt_length=256 \
    evaluation.num_prompts=64 evaluation.samples_per_prompt=4 evaluation.kl=none reward=judge \
    $judge.url="http://127.0.0.1:$port/v1" $judge.model=coverage memory.budget="${MEMORY_GB:-25}GB" memory.torch_threads=1 \
    tracker.report=false tracker.plot=false tracker.console=plain run_dir="$work/$1" "${@:2}" ${OPTIONS:-} > "$work/$1.log" 2>&1
}
# A mediocre warm start: it imitates drafts, and leaves the judge something to wish for.
run sft algorithm=sft task.target=draft steps="${SFT_STEPS:-24}" prompts_per_step=16
runs=()
for seed in 0 1 2; do
  run "dpo-$seed" seed="$seed" init_from="$work/sft" algorithm=online_dpo algorithm.group_size=2 algorithm.labels=wins \
    steps="${STEPS:-40}" prompts_per_step=16 & runs+=($!)
done
wait "${runs[@]}"
for against in before base; do
  echo "== $against"
  [ $against = base ] && other=(--base "$work/sft") || other=()
  python3 $here/win_rate.py "http://127.0.0.1:$port/v1" "${other[@]}" "$work"/dpo-{0,1,2}
done | tee "$out/win_rates.txt"
