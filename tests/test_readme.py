"""The README's code runs: the two commands are the two commands, every command exists, every Python example works."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = [(match[1].strip(), match[2]) for match in re.finditer(r"^```([^\n]*)\n(.*?)^```\s*$", README, re.MULTILINE | re.DOTALL)]
COMMANDS = [
    line.strip() for language, text in FENCES if language == "bash" for line in text.replace("\\\n", " ").splitlines() if line.strip()
]
DEMO_MODELS = ("demo-gpt2", "demo-opt", "demo-pythia")

needs_fences = pytest.mark.skipif(not FENCES, reason="README.md has no code blocks yet")


@needs_fences
def test_the_first_code_block_holds_exactly_the_two_commands():
    lines = [line.split("#")[0].strip() for line in FENCES[0][1].splitlines()]
    assert [line for line in lines if line] == ["make explore", "make test"]


@needs_fences
def test_every_fence_says_its_language():
    assert {language for language, _ in FENCES} <= {"bash", "python", "text", "json"}


@needs_fences
def test_every_command_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for line in COMMANDS:
        match [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]:
            case [] | ["git" | "cd" | "pip" | "source" | ".", *_]:
                pass
            case ["make", *words]:
                wrong += [f"{line}: no target {word}" for word in words if word not in targets]
            case [("python" | ".venv/bin/python"), "-m", module, *_]:
                wrong += [f"{line}: no module {module}"] if find_spec(module) is None else []
            case [("interp" | ".venv/bin/interp"), *words]:
                wrong += [f"{line}: {problem}" for problem in problems_of_interp(words)]
            case _:
                wrong.append(f"{line}: not a command that this test knows")
    assert not wrong, "\n".join(wrong)


def problems_of_interp(words: list[str]) -> list[str]:
    """What is wrong with a subcommand or an option of `interp`, asked of its own help."""
    typer_testing = pytest.importorskip("typer.testing")
    cli = pytest.importorskip("interp.cli")
    verb = [word for word in words[:1] if not word.startswith("-")]
    result = typer_testing.CliRunner().invoke(cli.app, [*verb, "--help"], env={"COLUMNS": "200"})
    if "COMMAND [ARGS]" in result.output and verb:  # a group: its command is asked
        verb = words[:2]
        result = typer_testing.CliRunner().invoke(cli.app, [*verb, "--help"], env={"COLUMNS": "200"})
    if result.exit_code:
        return [f"interp {' '.join(verb)} --help ends with status {result.exit_code}"]
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    return [f"no option {option}" for option in sorted(options) if option not in result.output]


@needs_fences
def test_every_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    examples = [text for language, text in FENCES if language == "python"]
    if not examples:
        pytest.skip("README.md has no Python example yet")
    missing = [name for name in DEMO_MODELS if not (ROOT / "interp" / "zoo" / name / "model.safetensors").exists()]
    if missing:
        pytest.skip(f"these demo models are not there yet: {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, text in enumerate(examples, start=1):
        exec(compile(text, f"README.md, Python example {number}", "exec"), namespace)


def test_no_link_of_the_readme_is_broken():
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) + re.findall(r'src="([^"]+)"', README)
    missing = [link for link in links if "://" not in link and not link.startswith("mailto:") and not (ROOT / link).exists()]
    assert not missing, missing
