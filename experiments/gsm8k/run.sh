#!/usr/bin/env bash
# SFT on GSM8K, then GRPO from where it ended. DATA has train.jsonl and test.jsonl; OUT is a new folder.
#   bash experiments/gsm8k/run.sh DATA OUT [overrides of the GRPO run]
set -euo pipefail
data=$1 out=$2
shift 2
rlkit=${RLKIT:-rlkit}
$rlkit experiment=gsm8k_sft "task.path=$data" "run_dir=$out/sft" seed="${SEED:-0}"
$rlkit experiment=gsm8k_grpo "task.path=$data" "run_dir=$out/grpo" "init_from=$out/sft" seed="${SEED:-0}" "$@"
