"""The wheel is whole: what it holds works where the checkout isn't."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_what_is_locked_is_a_release_that_anybody_can_install():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"#.*|[\w.-]+==[\w.!+]+", line)]
    assert wrong == []


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mope_fusion-*.whl")
    target = tmp_path / "installed"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)

    def run(*arguments: str) -> str:
        code = (
            f"import sys; sys.path.insert(0, {str(target)!r}); import mope; "
            f"assert mope.__file__.startswith({str(target)!r}), mope.__file__; "
            "from mope.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    run("init", "begin")
    run("data", "shop", "shop", "--train", "40", "--test", "10")
    assert "classification of 'department'" in run("fit", "shop/train.csv", "--label", "department", "--plan")
    assert len(list(target.glob("mope/**/*.py"))) == len(list((ROOT / "src" / "mope").glob("**/*.py")))
    assert (target / "mope" / "py.typed").is_file()
