#!/usr/bin/env bash
# Three seeds of the small model in folder $1, then the win rates; from the root of the repository.
set -e
folder=$1 here=experiments/judge port=18933 options=reward.functions.judge.options
python $here/posts.py "$folder/data"
python $here/tiny_sft.py "$folder/model"
python $here/rule_judge.py $port & judge=$!
trap 'kill $judge' EXIT
sleep 2
for seed in 0 1 2; do
  rlkit seed=$seed model.source="$folder/model" algorithm=online_dpo algorithm.group_size=2 algorithm.labels=wins \
    steps=24 prompts_per_step=16 optim.learning_rate=3e-3 task=dataset task.path="$folder/data/train.jsonl" \
    task.eval_path="$folder/data/eval.jsonl" +task.columns.prompt=prompt +task.columns.answer=answer \
    task.max_completion_length=24 task.max_prompt_length=160 evaluation.num_prompts=48 evaluation.samples_per_prompt=2 \
    reward=judge $options.url=http://127.0.0.1:$port/v1 $options.model=coverage run_dir="$folder/runs/judge-$seed"
done
# SmolLM2 is the same with steps=10, task.max_completion_length=32, evaluation.num_prompts=32, and the
# defaults of model and optim.
python $here/win_rate.py http://127.0.0.1:$port/v1 "$folder"/runs/judge-{0,1,2}
