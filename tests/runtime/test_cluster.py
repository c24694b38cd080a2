"""What starts several processes is recognised, and nothing else is."""

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.runtime.cluster import Flags, arguments

# As sbatch sets them for the script itself, and salloc for its shell.
BATCH = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
STEP = {**BATCH, 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_STEP_NUM_TASKS': '4'}
MPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}
ALL = {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1}


@pytest.mark.parametrize(
  'flags, environment, expected',
  [
    (Flags(), {}, None),
    (Flags(), BATCH, None),
    (Flags(), {**STEP, 'SLURM_STEP_NUM_TASKS': '1'}, None),  # srun --pty bash.
    (Flags(), {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'}, None),
    (Flags(), STEP, {}),
    (Flags(), {**MPI, 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:9'}, {}),
    (Flags('a:1', 2, 1), {}, ALL),
    (Flags('a:1', 2, 1), STEP, ALL),
    (Flags('a:1'), MPI, ALL),
    (Flags('a:1', 4, 3), MPI, {**ALL, 'num_processes': 4, 'process_id': 3}),
  ],
)
def test_processes_are_several_where_something_says_so(flags, environment, expected):
  assert arguments(flags, environment) == expected


@pytest.mark.parametrize(
  'flags, environment, named',
  [
    (Flags('a:1'), {}, '--num_processes, --process_id'),
    (Flags(None, 2, 0), {}, '--coordinator'),
    (Flags('a', 2, 0), {}, "--coordinator: got 'a'"),
    (Flags('a:b', 2, 0), {}, "--coordinator: got 'a:b'"),
    (Flags('a:1', 0, 0), {}, '--num_processes: got 0'),
    (Flags('a:1', 2, 2), {}, r'--process_id: got 2, allowed 0\.\.1'),
    (Flags(), MPI, '--coordinator'),
  ],
)
def test_what_does_not_say_enough_is_refused(flags, environment, named):
  with pytest.raises(InputError, match=named):
    arguments(flags, environment)
