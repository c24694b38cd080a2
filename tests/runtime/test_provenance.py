"""The commit that stands beside a result is that of this code, or none."""

import subprocess

from diffusion_jax.runtime import provenance


def git(folder, *arguments):
  identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
  command = ['git', '-C', str(folder), *identity, *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout_and_that_files_differ(tmp_path, monkeypatch):
  git(tmp_path, 'init', '-q')
  (tmp_path / 'code.py').write_text('1\n')
  git(tmp_path, 'add', '.')
  git(tmp_path, 'commit', '-q', '-m', 'one')
  monkeypatch.setattr(provenance, 'ROOT', tmp_path.resolve())
  assert provenance.commit() == git(tmp_path, 'rev-parse', 'HEAD')
  (tmp_path / 'code.py').write_text('2\n')
  assert provenance.commit() == git(tmp_path, 'rev-parse', 'HEAD') + '+changes'


def test_a_package_installed_inside_another_checkout_has_no_commit(tmp_path, monkeypatch):
  git(tmp_path, 'init', '-q')
  git(tmp_path, 'commit', '-q', '--allow-empty', '-m', 'theirs')
  site = tmp_path / '.venv' / 'site-packages'
  site.mkdir(parents=True)
  monkeypatch.setattr(provenance, 'ROOT', site.resolve())
  assert provenance.commit() == ''
