#!/bin/bash
# A search whose trials run as tasks of a Slurm job: sbatch slurm.sh
#
# The chief runs on the first node of the job, and a worker in each task. The job can be cancelled or
# requeued: submitted again, it continues. --directory has to be on a file system that the nodes
# share.
#SBATCH --job-name=search
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -u

search=(keras-mas search split-digits --trials 20 --directory "$SLURM_SUBMIT_DIR/search")
port=$((20000 + SLURM_JOB_ID % 10000)) # another one for each job of a node

# A task has some of its node's cores.
export TF_NUM_INTRAOP_THREADS=$SLURM_CPUS_PER_TASK
export TF_NUM_INTEROP_THREADS=$SLURM_CPUS_PER_TASK
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

"${search[@]}" --workers 0 --listen "0.0.0.0:$port" &
chief=$!

# The workers end when the search has, or when the chief is gone. Without them it would wait.
srun --overlap "${search[@]}" --join "$(hostname):$port" || kill "$chief"
wait "$chief"
