"""Writes the GitHub repository into all notebooks and the README: their badges, the install cell.

python colabs/set_repository.py OWNER/NAME
python colabs/set_repository.py OWNER/NAME --check    # writes nothing; exit code 1 if one differs
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What stands before the repository in a badge's address and in the install cell.
_PREFIX = r"(colab\.research\.google\.com/github/|REPOSITORY = ')"
_REPOSITORY = re.compile(rf'{_PREFIX}[\w.-]+/[\w.-]+')


def files() -> list[pathlib.Path]:
  """The files that name the repository."""
  return [*sorted((ROOT / 'colabs').glob('*.ipynb')), ROOT / 'README.md']


def with_repository(text: str, repository: str) -> str:
  """A notebook or page that names this repository wherever it named one."""
  return _REPOSITORY.sub(rf'\g<1>{repository}', text)


def main() -> int:
  parser = argparse.ArgumentParser(
    description='Writes the GitHub repository into the notebooks and the README.'
  )
  parser.add_argument('repository', metavar='OWNER/NAME')
  parser.add_argument('--check', action='store_true', help='write nothing')
  args = parser.parse_args()
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', args.repository):
    parser.error(f'{args.repository!r} is not OWNER/NAME')
  differing = []
  for path in files():
    old = path.read_text(encoding='utf-8')
    new = with_repository(old, args.repository)
    if new != old:
      differing.append(path.relative_to(ROOT))
      if not args.check:
        path.write_text(new, encoding='utf-8')
  for path in differing:
    print(f'{path} {"names another repository" if args.check else "changed"}')
  return 1 if args.check and differing else 0


if __name__ == '__main__':
  sys.exit(main())
