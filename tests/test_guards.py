"""The guards of conftest.py, each on a small session of its own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
LISTED = tomllib.loads(CONFTEST.with_name("allowed_skips.toml").read_text())["skip"]
ALLOWED = """
[[skip]]
test = "test_it.py::test_gpu_speed"
reason = "needs a CUDA device"
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty session with our conftest and one allowed skip."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST.read_text().replace("GRACE_SECONDS = 10.0", "GRACE_SECONDS = 2"))
    (pytester.path / "allowed_skips.toml").write_text(ALLOWED)
    return pytester


def skipping(name: str, reason: str) -> str:
    return f"import pytest\n\ndef {name}():\n    pytest.skip({reason!r})\n"


def test_a_listed_skip_is_accepted(session: pytest.Pytester) -> None:
    session.makepyfile(test_it=skipping("test_gpu_speed", "needs a CUDA device (found none)"))
    result = session.runpytest_subprocess("--fail-on-skip")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_listed_test_may_skip_with_any_parameters(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_it="import pytest\n\n@pytest.mark.parametrize('size', ['a/b', '*'])\n"
        "def test_gpu_speed(size):\n    pytest.skip('needs a CUDA device')"
    )
    result = session.runpytest_subprocess("--fail-on-skip")
    result.assert_outcomes(skipped=2)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("file", "name", "reason"),
    [
        ("test_it", "test_gpu_speed", "no time"),
        ("test_it", "test_gpu_speed_too", "needs a CUDA device"),
        ("test_other", "test_gpu_speed", "needs a CUDA device"),
    ],
    ids=["other_reason", "other_test", "other_file"],
)
def test_a_skip_that_is_not_listed_fails_the_session(
    session: pytest.Pytester, file: str, name: str, reason: str
) -> None:
    session.makepyfile(**{file: skipping(name, reason)})
    result = session.runpytest_subprocess("--fail-on-skip")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"SKIP NOT ALLOWED *::{name}: Skipped: {reason}"])


def test_a_file_skipped_as_a_whole_fails_the_session(session: pytest.Pytester) -> None:
    session.makepyfile("import pytest\npytest.importorskip('no_such_module')\ndef test_a(): ...")
    result = session.runpytest_subprocess("--fail-on-skip")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["SKIP NOT ALLOWED *no_such_module*"])


def test_ci_in_the_environment_switches_the_guard_on(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.makepyfile(skipping("test_speed", "no time"))
    assert session.runpytest_subprocess().ret == pytest.ExitCode.OK
    monkeypatch.setenv("CI", "true")
    assert session.runpytest_subprocess().ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["test"])
def test_every_listed_skip_is_one_of_a_test_there_is(entry: dict[str, str]) -> None:
    file, _, name = entry["test"].partition("::")
    assert f"def {name}(" in (CONFTEST.parents[1] / file).read_text()


def test_an_expected_failure_is_no_skip(session: pytest.Pytester) -> None:
    session.makepyfile("import pytest\n\n@pytest.mark.xfail\ndef test_a():\n    assert False")
    assert session.runpytest_subprocess("--fail-on-skip").ret == pytest.ExitCode.OK


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_process_left_behind_fails_the_session(session: pytest.Pytester) -> None:
    # The child starts a grandchild and dies: nobody's child any more, but still ours.
    grandchild = "import time; time.sleep(6)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}])"
    session.makepyfile(
        "import subprocess, sys\n\n"
        f"def test_a():\n    subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    result = session.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["PROCESS LEFT BEHIND *time.sleep(6)*"])


def test_a_process_that_is_about_to_end_is_waited_for(session: pytest.Pytester) -> None:
    session.makepyfile(
        "import subprocess, sys\n\n"
        "def test_a():\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.5)'])"
    )
    assert session.runpytest_subprocess("-Wignore").ret == pytest.ExitCode.OK


def test_the_environment_is_set_before_ray_can_be_imported() -> None:
    code = "import conftest, os, sys; print(os.environ['RAY_AUTH_MODE'], 'ray' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CONFTEST.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["disabled", "False"]
