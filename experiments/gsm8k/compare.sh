#!/usr/bin/env bash
# Arms of five seeds at equal samples from one warm start, one arm after the other on the visible cards, all at once.
#   CARDS="0 1" bash experiments/gsm8k/compare.sh MODEL ADAPTER DATA WORK OUT STEPS SECONDS ARM...
# ADAPTER is a warm start in PEFT's format; `sft` makes one first. DATA has train.jsonl and test.jsonl.
# ARM is dr_grpo, rloo_token, ppo, online_dpo or trl. SECONDS: when TRL's adapter is saved for equal time; 0 = never.
# SEEDS=N takes N seeds from FIRST=0 on; WEIGHT=0.5 is that of the reward `chain`, 0 leaves it out; RATE is the learning rate.
# KV=BYTES is the key-value cache of each engine: far less than what 512 rows of full length need is enough.
# LIMIT=S asks rlkit's runs to end after S seconds; what they learnt until then is evaluated.
set -u
model=$1 adapter=$2 data=$3 work=$4 out=$5 steps=$6 seconds=$7
shift 7
export PYTHONPATH=${PYTHONPATH:-$PWD}
read -ra cards <<< "${CARDS:-0}"
seeds=${SEEDS:-5} first=${FIRST:-0} weight=${WEIGHT:-0.5} rate=${RATE:-3e-4} engine=${KV:+generator=vllm generator.kv_cache_bytes=$KV}
jobs=$(($# * seeds)) each=$(((jobs + ${#cards[@]} - 1) / ${#cards[@]}))
share=$((${MEMORY_GB:-125} / (each + 1)))
mkdir -p "$work" "$out"
python3 experiments/gsm8k/easy.py "$data" "$work/easy" --most 3
began=$SECONDS
if [ "$adapter" = sft ]; then
  CUDA_VISIBLE_DEVICES=${cards[0]} python3 -m rlkit experiment=gsm8k_sft model.source="$model" task.path="$data" generator=hf \
    evaluation.num_prompts=1 checkpoint.every=1000 tracker.report=false tracker.plot=false tracker.console=plain \
    run_dir="$work/sft" > "$work/sft.log" 2>&1 || exit 1
  adapter=$work/sft/adapter
  echo "the warm start took $((SECONDS - began)) s"
fi
began=$SECONDS number=0 folders=("warm=$adapter") runs=()
rlkit_run() { # ARM SEED
  # In the foreground: a second signal to the same process group would end the run without a checkpoint.
  CUDA_VISIBLE_DEVICES=$card timeout --foreground -k 60 "${LIMIT:-100000}" python3 -m rlkit experiment=gsm8k_rl \
    algorithm="$1" seed="$2" model.source="$model" model.adapter="$adapter" task.path="$work/easy" steps="$steps" \
    evaluation.num_prompts=1 memory.budget="${share}GB" memory.torch_threads=1 tracker.report=false tracker.plot=false tracker.console=plain \
    reward.functions.chain.weight="$weight" optim.learning_rate="$rate" run_dir="$work/$1-$2" $engine ${OVERRIDES:-} > "$work/$1-$2.log" 2>&1
}
trl_run() { # SEED
  CUDA_VISIBLE_DEVICES=$card OMP_NUM_THREADS=1 python3 -m experiments.gsm8k.trl_grpo "$model" "$adapter" "$work/easy" \
    "$work/trl-$1" --seed "$1" --steps "$steps" --seconds "$seconds" --share 0.05 \
    --chain "$weight" --rate "$rate" ${LIMIT:+--limit "$LIMIT"} \
    > "$work/trl-$1.log" 2>&1
}
for arm in "$@"; do
  for ((seed = first; seed < first + seeds; seed++)); do
    card=${cards[$((number % ${#cards[@]}))]}
    if [ "$arm" = trl ]; then
      trl_run $seed &
      folders+=("trl-$seed-samples=$work/trl-$seed/samples/adapter" "trl-$seed-seconds=$work/trl-$seed/seconds/adapter")
      [ "$seconds" = 0 ] && unset "folders[-1]"
    else
      rlkit_run "$arm" $seed &
      folders+=("$arm-$seed=$work/$arm-$seed/adapter")
    fi
    runs+=($!) number=$((number + 1))
  done
done
over=$work/training-is-over evaluations=()
rm -f "$over"
# The engines of the evaluation start beside the runs, ask the warm start, and wait for the others.
for ((part = 0; part < ${#cards[@]}; part++)); do
  mine=()
  for ((i = part; i < ${#folders[@]}; i += ${#cards[@]})); do mine+=("${folders[$i]}"); done
  CUDA_VISIBLE_DEVICES=${cards[$part]} python3 -m experiments.gsm8k.evaluate "$data" "$out/policies-$part.json" "${mine[@]}" \
    "model.source=$model" "memory.budget=${share}GB" $engine --until "$over" --samples "${SAMPLES:-4}" --prompts "${PROMPTS:-1319}" \
    > "$work/evaluate-$part.log" 2>&1 &
  evaluations+=($!)
done
wait "${runs[@]}"
for run in "$work"/*/; do # a run that was asked to end has what it learnt in its newest checkpoint
  newest=$(ls -d "$run"checkpoints/step-* 2> /dev/null | tail -n 1)
  if [ -n "$newest" ] && [ ! -e "${run}adapter" ]; then
    mkdir "${run}adapter" && cp "$newest/adapter.safetensors" "${run}adapter/adapter_model.safetensors"
    echo "$(basename "$run") ended early, at $(basename "$newest")"
  fi
done
touch "$over"
echo "training took $((SECONDS - began)) s"
began=$SECONDS
wait "${evaluations[@]}"
echo "evaluation took $((SECONDS - began)) s"
grep -hE " (greedy|sampled): " "$work"/evaluate-*.log
python3 -m experiments.gsm8k.analyse "$work" "$out"
