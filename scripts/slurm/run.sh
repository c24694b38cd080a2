#!/bin/bash
# What the batch scripts do: main.py in every task of the job, and the job again if it was interrupted.
#   run.sh MODE CONFIG WORKDIR [--config.FIELD=VALUE ...]
# PYTHON is the interpreter on all nodes, .venv/bin/python by default.
if (($# < 3)); then
  echo "usage: sbatch scripts/slurm/$1.sbatch CONFIG WORKDIR [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
mode=$1 config=$2 workdir=$3
shift 3

# Slurm sends the SIGTERM of --signal to the tasks, not to this shell. They write a checkpoint and exit with 75,
# which srun returns. One task may end a moment before the others, so that must not kill them.
options=(--kill-on-bad-exit=0)
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
  options+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # srun does not take it over from sbatch.
fi
srun "${options[@]}" "${PYTHON:-.venv/bin/python}" main.py \
  --mode="$mode" --config="$config" --workdir="$workdir" "$@"
code=$?
if ((code == 75)); then
  echo "interrupted: job $SLURM_JOB_ID goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
