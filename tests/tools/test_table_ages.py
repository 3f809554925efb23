"""Each table of figures says of which commit it is, and the script says which are old."""

import subprocess

import pytest

from tools.table_ages import PAGE, ROOT, Table, later, tables_of

PAGE_OF_TWO = """\
# Figures

## Speed

| command | seconds |
| --- | --- |
| ours | 1 |

Recorded in `abc1234` and `def5678`, of
`package` and `tools/bench.py`.

## Other

| command | seconds |
| --- | --- |
| ours | 1 |

More text.
"""


def test_what_stands_behind_a_table_is_read():
    assert [*tables_of(PAGE_OF_TWO)] == [
        Table(6, "Speed", ("abc1234", "def5678"), ("package", "tools/bench.py")),
        Table(15, "Other", (), ()),
    ]


def test_every_table_of_figures_says_its_commit_and_its_code():
    for table in tables_of(PAGE.read_text()):
        assert table.commits, f"{table.section}, line {table.line}"
        assert table.code
        assert all((ROOT / path).exists() for path in table.code), table.code


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        who = "-c", "user.name=n", "-c", "user.email=e@example.org"
        command = ["git", *who, *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(name):
        (tmp_path / name).write_text("content")
        git("add", "-A")
        git("commit", "-qm", name)
        return git("rev-parse", "--short", "HEAD")

    git("init", "-q")
    return tmp_path, commit


def test_a_table_is_old_if_a_later_commit_changes_its_code(repository):
    path, commit = repository
    first, second = commit("code.py"), commit("other.py")
    assert later(Table(1, "", (first,), ("code.py",)), path) == 0
    assert later(Table(1, "", (first,), ("code.py", "other.py")), path) == 1
    assert later(Table(1, "", (second, first), ("other.py",)), path) == 1
