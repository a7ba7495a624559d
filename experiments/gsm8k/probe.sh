#!/usr/bin/env bash
# Three rates of SFT, then eight variants of RL from the second, all at once on one card (300 s).
#   bash experiments/gsm8k/probe.sh MODEL DATA WORK OUT [STEPS OF SFT] [STEPS OF RL]
set -u
model=$1 data=$2 work=$3 out=$4 sft=${5:-350} rl=${6:-24}
here=experiments/gsm8k
mkdir -p "$work" "$out"
began=$SECONDS
common=(model.source="$model" task=gsm8k task.path="$data" task.max_prompt_length=288 task.max_completion_length=256
  evaluation.num_prompts=1 evaluation.samples_per_prompt=1 evaluation.kl=none memory.torch_threads=1
  checkpoint.every=1000 tracker.plot=false tracker.report=false tracker.console=plain)
adapter_of() { echo "$work/$1/adapter"; }

for rate in 5e-4 1e-3 2e-3; do
  python3 -m rlkit "${common[@]}" algorithm=sft task.overlong_targets=drop generator=hf steps="$sft" prompts_per_step=64 \
    optim.learning_rate=$rate optim.schedule=linear optim.warmup_steps=10 memory.budget=30GB run_dir="$work/sft_$rate" \
    > "$work/sft_$rate.log" 2>&1 &
done
wait
echo "SFT took $((SECONDS - began)) s"

correct='+reward.functions.correctness={fn: correctness, options: {as_numbers: true}}'
variant() {
  local name=$1
  shift
  timeout 150 python3 -m rlkit "${common[@]}" model.adapter="$(adapter_of sft_1e-3)" model.adapter_use=train generator=vllm \
    kl=none steps="$rl" prompts_per_step=32 algorithm.group_size=16 memory.budget=13GB optim.warmup_steps=2 \
    run_dir="$work/$name" "$@" > "$work/$name.log" 2>&1 &
  runs+=("$name=$(adapter_of "$name")")
}
runs=()
began=$SECONDS
variant dr_1e-4 algorithm=dr_grpo optim.learning_rate=1e-4 "$correct"
variant dr_3e-4 algorithm=dr_grpo optim.learning_rate=3e-4 "$correct"
variant dr_1e-3 algorithm=dr_grpo optim.learning_rate=1e-3 "$correct"
variant std_3e-4 algorithm=grpo optim.learning_rate=3e-4 "$correct"
variant five_3e-4 algorithm=grpo optim.learning_rate=3e-4
variant resample_3e-4 algorithm=dr_grpo algorithm.group_filter=resample prompts_per_step=16 optim.learning_rate=3e-4 "$correct"
variant g64_3e-4 algorithm=dr_grpo algorithm.group_size=64 prompts_per_step=8 optim.learning_rate=3e-4 "$correct"
variant kl_3e-4 algorithm=dr_grpo kl=reverse_k3 kl.beta=0.02 optim.learning_rate=3e-4 "$correct"
ask() { python3 $here/evaluate.py "$model" "$data" "$@" --share 0.08; }
ask "$out/warm.json" sft_5e-4="$(adapter_of sft_5e-4)" sft_1e-3="$(adapter_of sft_1e-3)" sft_2e-3="$(adapter_of sft_2e-3)" \
  > "$work/warm.log" 2>&1
ask "$out/first.json" "${runs[@]:0:4}" --wait 150 > "$work/first.log" 2>&1 &
ask "$out/second.json" "${runs[@]:4:4}" --wait 150 > "$work/second.log" 2>&1 &
wait
echo "RL and evaluation took $((SECONDS - began)) s"
grep -h "greedy" "$work"/{warm,first,second}.log
tail -n 2 "$work"/*.log | cut -c1-300
python3 $here/gather.py "$work" "$out"
