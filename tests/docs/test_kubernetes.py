"""The job for Kubernetes on the page: YAML of the fields that an indexed job has, and a command that is a share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from segpipe.common.shards import Shard

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "kind: Job" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_an_indexed_job_gives_each_index_its_share(page: Path) -> None:
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL) if "kind: Job" in block]
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] <= spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # all that a job may have
    (container,) = pod["containers"]
    command = [*container["command"], *container.get("args", [])]
    assert command[:2] == ["sh", "-c"]
    shares = set()
    for index in range(spec["completions"]):
        words = shlex.split(command[2].replace("$JOB_COMPLETION_INDEX", str(index)))
        assert words[:2] == ["segpipe", "predict"]
        shares.add(Shard.parse(words[words.index("--shard") + 1]))
    assert shares == {Shard(index, spec["completions"]) for index in range(spec["completions"])}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_there_is_one() -> None:
    assert DOCS / "howto/more_than_one_machine.md" in PAGES
