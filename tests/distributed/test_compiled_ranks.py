"""A compiled run on two processes learns what an uncompiled one on one process learns."""

import json
from pathlib import Path
from typing import Any

import pytest

AOT = "import functools, torch; torch.compile = functools.partial(torch.compile, backend='aot_eager')"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_ranks_follow_one_process(
    parallel: str, start: Any, torchrun: Any, tiny_world: Any, teacher_run: Path, tmp_path: Path
) -> None:
    words = ["steps=2", "eval_every=0", f"stage.teacher={teacher_run}"]
    one = start(tiny_world.settings("student", tmp_path / "one", *words))
    assert one.code == 0, one.err
    words += ["compile=true", f"parallel={parallel}"]
    two = torchrun(tiny_world.settings("student", tmp_path / "two", *words), before=AOT, timeout_s=600)
    assert two.code == 0, two.err
    expected, found = (losses(tmp_path / name) for name in ("one", "two"))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found == pytest.approx(expected, rel=0.05)


def losses(run_dir: Path) -> list[float]:
    """Returns the total loss of each step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]
