#!/usr/bin/env bash
# The three tasks with an environment, three seeds each, all at once on one card; results in OUT.
#   bash experiments/environments/h200.sh MODEL WORK OUT
set -u
model=$1 work=$2 out=$3
mkdir -p "$work" "$out"
start() {
  local name=$1
  shift
  timeout 170 python3 -m rlkit model.source="$model" generator=vllm memory.budget=9GB memory.torch_threads=1 \
    tracker.console=plain tracker.plot=false tracker.report=false run_dir="$work/$name" "$@" > "$work/$name.log" 2>&1 &
}
for seed in 0 1 2; do
  start calculator-$seed task=calculator seed=$seed
  start lookup-$seed task=lookup seed=$seed
  start guess-$seed task=guess_number seed=$seed steps=24
done
start guess-to-go task=guess_number steps=24 algorithm=rloo_token kl=none algorithm.advantage.turns=to_go
start guess-g16 task=guess_number steps=24 algorithm.group_size=16
start guess-5e-4 task=guess_number steps=24 optim.learning_rate=5e-4 kl=none
wait
grep -H "^evaluation" "$work"/*.log | sed "s|$work/||"
python3 - "$work" "$out" <<'P'
import json, pathlib, sys
work, out = map(pathlib.Path, sys.argv[1:])
found = {}
for run in sorted(work.glob("*/evals.jsonl")):
    found[run.parent.name] = {
        "evals": [
            {k: row.get(k) for k in ("label", "step", "mean", "low", "high", "judged", "length")}
            | {"episodes": {k: v for k, v in row.items() if k.startswith(("episodes", "environment"))}}
            for row in map(json.loads, run.read_text().splitlines())
        ],
        "rewards": [
            round(row["reward"], 4)
            for row in map(json.loads, (run.parent / "metrics.jsonl").read_text().splitlines())
        ],
    }
(out / "demos.json").write_text(json.dumps(found))
(out / "logs.txt").write_text("\n".join(f"=== {f.name}\n{f.read_text()[-3000:]}" for f in sorted(work.glob("*.log"))))
P
tar czf "$out/guess.tgz" -C "$work" guess-0/completions guess-g16/completions
