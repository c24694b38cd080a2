"""The launchers run with stand-ins for the commands of a cluster; no test needs one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / 'scripts'
SLURM = {mode: SCRIPTS / 'slurm' / f'{mode}.sbatch' for mode in ('train', 'sample', 'evaluate')}
STAND_INS = {
  # Runs a copy of the script elsewhere, as Slurm does, with what a batch script finds.
  'sbatch': """#!/bin/bash
cp "$1" "$STAND_INS/spooled"
export SLURM_JOB_ID=$JOB SLURM_NTASKS=$TASKS SLURM_CPUS_PER_TASK=1 SLURM_SUBMIT_DIR=$PWD
bash "$STAND_INS/spooled" "${@:2}"
""",
  # TASKS tasks on this host; returns the highest exit code.
  'srun': """#!/bin/bash
printf '%s\\n' "$*" >>"$STAND_INS/srun.log"
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_TASKS=$TASKS SLURM_NTASKS=$TASKS
for ((task = 0; task < TASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  tasks+=("$!")
done
echo "${tasks[@]}" >"$STAND_INS/tasks"
highest=0
for task in "${tasks[@]}"; do
  wait "$task"
  code=$?
  ((code > highest)) && highest=$code
done
rm "$STAND_INS/tasks"
exit "$highest"
""",
  'scontrol': '#!/bin/bash\necho "$*" >>"$STAND_INS/scontrol.log"\n',
}
TPU = {'ZONE': 'us-east5-a', 'TYPE': 'v6e-16', 'RUNTIME': 'v2-alpha-tpuv6e', 'FLAGS': '--spot'}


@pytest.fixture
def cluster(tmp_path):
  """The environment in which sbatch, srun and scontrol are stand-ins that log to tmp_path/cluster."""
  folder = tmp_path / 'cluster'
  folder.mkdir()
  for name, text in STAND_INS.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  job = str(os.getpid() % 4096)  # Which makes the coordinator's port.
  stand_ins = {'STAND_INS': str(folder), 'JOB': job, 'TASKS': '2', 'PYTHON': sys.executable}
  yield {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', **stand_ins}
  for task in tasks(stand_ins):  # Those of a failed test.
    with contextlib.suppress(ProcessLookupError):
      os.kill(task, signal.SIGKILL)


def tasks(cluster):
  path = Path(cluster['STAND_INS'], 'tasks')
  return list(map(int, path.read_text().split())) if path.exists() else []


def logged(cluster, name):
  path = Path(cluster['STAND_INS'], f'{name}.log')
  return path.read_text().splitlines() if path.exists() else []


def sbatch(cluster, script, *arguments, **options):
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  command = ['sbatch', script, *arguments]
  return subprocess.Popen(command, cwd=ROOT, env=cluster, **pipes)


def tpu_vm(*arguments, **environment):
  command = [SCRIPTS / 'tpu_vm.sh', *arguments]
  clean = {name: value for name, value in os.environ.items() if name not in (*TPU, 'NFS')}
  return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True)


def commands(*arguments, **environment):
  """Returns the commands that --dry-run prints, as lists of words."""
  done = tpu_vm('--dry-run', *arguments, **{**TPU, **environment})
  assert (done.returncode, done.stderr) == (0, '')
  words = [f'printf "%s\\0" {line}; echo' for line in done.stdout.splitlines()]
  read = subprocess.run(['bash', '-c', '\n'.join(words)], capture_output=True, text=True)
  return [line.split('\0') for line in read.stdout.split('\0\n')[:-1]]


@pytest.mark.parametrize('mode', SLURM)
@pytest.mark.parametrize(('code', 'requeued'), [(0, False), (75, True), (2, False), (4, False)])
def test_only_an_interrupted_job_goes_back_into_the_queue(cluster, tmp_path, mode, code, requeued):
  python = tmp_path / 'python'
  python.write_text(
    f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/words-$SLURM_PROCID\nexit {code}\n'
  )
  python.chmod(0o755)
  cluster['PYTHON'] = str(python)
  batch = sbatch(cluster, SLURM[mode], 'configs/a.py:8', 'runs/a b', '--config.x=(1, 2)')
  batch.communicate(timeout=30)
  assert batch.returncode == code
  assert logged(cluster, 'scontrol') == [f'requeue {cluster["JOB"]}'] * requeued
  words = [
    'main.py',
    f'--mode={mode}',
    '--config=configs/a.py:8',
    '--workdir=runs/a b',
    '--config.x=(1, 2)',
  ]
  assert [(tmp_path / f'words-{n}').read_text().splitlines() for n in (0, 1)] == [words, words]
  assert logged(cluster, 'srun')[0].startswith('--kill-on-bad-exit=0 --cpus-per-task=1 ')


@pytest.mark.parametrize('script', SLURM.values(), ids=SLURM)
def test_the_batch_scripts_ask_slurm_for_a_signal_and_a_requeue(cluster, script):
  asked = {
    line.split()[1] for line in script.read_text().splitlines() if line.startswith('#SBATCH ')
  }
  assert {'--signal=TERM@120', '--requeue', '--open-mode=append'} <= asked
  batch = sbatch(cluster, script, 'configs/dit_cfg.py')
  _, errors = batch.communicate(timeout=30)
  assert batch.returncode == 2 and 'WORKDIR' in errors and not logged(cluster, 'srun')


@pytest.mark.slow
@pytest.mark.unoptimised
def test_a_job_is_interrupted_on_two_tasks_and_goes_on_with_one(cluster, tmp_path):
  cluster |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'}
  cluster.pop('XLA_FLAGS', None)
  workdir = tmp_path / 'run'
  tiny = {
    'data.dir': tmp_path / 'data',
    'model.dit.depth': 2,
    'model.dit.hidden_size': 32,
    'optimizer.warmup_steps': 2,
    'train.num_steps': 200,
    'train.batch_size': 32,
    'train.log_every_steps': 2,
    'train.holdout_every_steps': 200,
    'train.preview_every_steps': 200,
    'checkpoint.every_steps': 200,
  }
  flags = [f'--config.{name}={value}' for name, value in tiny.items()]
  command = [cluster, SLURM['train'], 'configs/quickstart.py', str(workdir), *flags]
  cluster['TASKS'] = '2'
  batch, metrics = sbatch(*command), workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 200
  while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
    assert batch.poll() is None and time.monotonic() < deadline, batch.communicate(timeout=5)
    time.sleep(0.05)
  for task in tasks(cluster):
    os.kill(task, signal.SIGTERM)  # As Slurm does with the tasks, not with the batch script.
  _, errors = batch.communicate(timeout=200)
  assert batch.returncode == 75, errors
  assert logged(cluster, 'scontrol') == [f'requeue {cluster["JOB"]}']
  stopped = json.loads(metrics.read_text().splitlines()[-1])['step']
  assert stopped < 200

  cluster['TASKS'] = '1'
  batch = sbatch(*command)
  output, errors = batch.communicate(timeout=300)
  assert batch.returncode == 0, errors
  steps = [json.loads(line)['step'] for line in metrics.read_text().splitlines()]
  assert max(steps) == 200 and 'done: 200 steps' in output


def test_tpu_vm_creates_and_deletes():
  zone = '--zone=us-east5-a'
  vm, queue = (
    ['gcloud', 'compute', 'tpus', 'tpu-vm'],
    ['gcloud', 'compute', 'tpus', 'queued-resources'],
  )
  kind = ['--accelerator-type=v6e-16', '--version=v2-alpha-tpuv6e', '--spot']
  assert commands('create', 'pod') == [[*vm, 'create', 'pod', zone, *kind]]
  assert commands('create', 'pod', FLAGS='') == [[*vm, 'create', 'pod', zone, *kind[:2]]]
  kind[1] = '--runtime-version=v2-alpha-tpuv6e'
  assert commands('queue', 'pod') == [[*queue, 'create', 'pod', zone, '--node-id=pod', *kind]]
  assert commands('status', 'pod') == [
    [*queue, 'describe', 'pod', zone, '--format=value(state.state)']
  ]
  assert commands('delete', 'pod') == [[*vm, 'delete', 'pod', zone, '--quiet']]
  assert commands('dequeue', 'pod') == [[*queue, 'delete', 'pod', zone, '--force', '--quiet']]
  fetched = [*vm, 'scp', '--recurse', 'pod:/mnt/share/dit', 'runs', zone, '--worker=0']
  assert commands('fetch', 'pod', '/mnt/share/dit', 'runs') == [fetched]


def test_tpu_vm_installs_launches_follows_and_stops_on_all_workers():
  ssh = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod', '--zone=us-east5-a', '--worker=all']
  archive, copied, removed, installed = commands('install', 'pod')
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD' and removed[0] == 'rm'
  assert copied[4:] == ['scp', removed[1], 'pod:', '--zone=us-east5-a', '--worker=all']
  files = '-r requirements-core.txt -r requirements-tf.txt -r requirements-tpu.txt'
  assert installed[:-1] == ssh and files in installed[-1]
  mounted = commands('install', 'pod', NFS='10.0.0.2:/share')[-1]
  assert mounted[:-1] == ssh and 'mount -t nfs 10.0.0.2:/share /mnt/share' in mounted[-1]

  (launched,) = commands('launch', 'pod', 'configs/dit_cfg.py', '/mnt/share/dit')
  assert launched[:-1] == ssh
  assert [command[:-1] for command in commands('follow', 'pod') + commands('stop', 'pod')] == [
    ssh
  ] * 2


def test_what_a_worker_of_tpu_vm_runs(tmp_path):
  """The line for a worker, run here: main.py goes on in the background, once, until it is stopped."""
  folder = tmp_path / 'diffusion_jax'
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\necho all >words\nexec sleep 60\n')
  python.chmod(0o755)
  override = '--config.sample.labels=(1, "a b")'
  (launched,) = commands('launch', 'pod', 'configs/dit_cfg.py', '/mnt/share/dit', override)
  (stopped,) = commands('stop', 'pod')
  here, gone = {'cwd': tmp_path, 'timeout': 30}, time.monotonic() + 30
  worker = ['bash', '-c', launched[-1].removeprefix('--command=')]
  assert subprocess.run(worker, **here).returncode == 0
  try:
    while not (folder / 'words').exists():
      assert time.monotonic() < gone
      time.sleep(0.01)
    words = (folder / 'run.log').read_text().splitlines()
    assert words == ['main.py', '--config=configs/dit_cfg.py', '--workdir=/mnt/share/dit', override]
    assert subprocess.run(worker, **here, capture_output=True).returncode == 1
  finally:
    subprocess.run(['bash', '-c', stopped[-1].removeprefix('--command=')], check=True, **here)


def test_tpu_vm_resumes_by_making_the_slice_again():
  arguments = ('configs/dit_cfg.py', '/mnt/share/dit', '--config.train.batch_size=512')
  done = commands('resume', 'pod', *arguments)
  assert [words[4] for words in done[:3]] == ['delete', 'create', 'describe']
  assert done[3:] == commands('install', 'pod') + commands('launch', 'pod', *arguments)


@pytest.mark.parametrize(
  ('arguments', 'named', 'environment'),
  [
    ((), 'command', TPU),
    (('grow', 'pod'), 'grow', TPU),
    (('create',), 'NAME', TPU),
    (('create', '--dry-run'), 'NAME', TPU),
    (('delete', 'pod', 'other'), 'delete', TPU),
    (('fetch', 'pod', '/mnt/share/dit'), 'fetch', TPU),
    (('launch', 'pod', 'configs/dit_cfg.py'), 'launch', TPU),
    (('create', 'pod'), 'ZONE', {}),
    (('queue', 'pod'), 'TYPE', {'ZONE': 'us-east5-a'}),
    (('resume', 'pod', 'configs/dit_cfg.py', 'runs'), 'TYPE', {'ZONE': 'us-east5-a'}),
  ],
)
def test_tpu_vm_answers_a_mistake_with_one_line(arguments, named, environment):
  done = tpu_vm('--dry-run', *arguments, **environment)
  assert (done.returncode, done.stdout) == (2, '')
  assert named in done.stderr and len(done.stderr.splitlines()) == 1


def test_shellcheck_finds_nothing():
  files = [*SCRIPTS.rglob('*.sh'), *SCRIPTS.rglob('*.sbatch')]
  assert len(files) == 5
  shellcheck = Path(sys.executable).with_name('shellcheck')
  done = subprocess.run([shellcheck, *files], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_number_of_processes_in_the_kubernetes_file_is_that_of_the_pods():
  service, job = yaml.safe_load_all((SCRIPTS / 'k8s.yaml').read_text())
  spec = job['spec']
  (command,) = spec['template']['spec']['containers'][0]['args']
  assert spec['completions'] == spec['parallelism'] == 2 and '--num_processes=2' in command
  name = service['metadata']['name']
  assert spec['template']['spec']['subdomain'] == name
  assert f'--coordinator={job["metadata"]["name"]}-0.{name}:8476' in command
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}


def test_the_skypilot_file_gives_main_its_place(tmp_path):
  task = yaml.safe_load((SCRIPTS / 'skypilot.yaml').read_text())
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
  python.chmod(0o755)
  sky = {
    'SKYPILOT_NODE_IPS': '10.0.0.2\n10.0.0.3',
    'SKYPILOT_NUM_NODES': '2',
    'SKYPILOT_NODE_RANK': '1',
  }
  environment = {**os.environ, **task['envs'], **sky}
  command = ['bash', '-c', task['run']]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.stdout.split() == [
    *('main.py', '--config=configs/dit_cfg.py', '--workdir=/share/runs/dit'),
    *('--config.data.dir=/share/data', '--coordinator=10.0.0.2:8476'),
    *('--num_processes=2', '--process_id=1'),
  ]
