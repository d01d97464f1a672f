"""`--mlflow`: what MLflow's own client reads back, also after an interruption and while the server is away."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.errors import UsageError
from segpipe.training.tracking import ADDRESS, tracked
from tiny_data import train_arguments

slow = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("address", ["mlruns", "file:///mlruns", "sqlite:store.db", "ftp://host"])
def test_other_addresses_are_refused_before_anything_is_imported(address: str) -> None:
    with pytest.raises(UsageError, match="not an address of MLflow"), tracked(address):
        pass
    assert ADDRESS not in os.environ


def test_without_mlflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="tracking needs MLflow") as caught, tracked("http://localhost:5000"):
        pass
    assert caught.value.hint == "install it: pip install 'segpipe[mlflow]'"


class TestStore:
    """A local store; importing MLflow takes seconds."""

    pytestmark = slow

    @pytest.fixture
    def store(self, tmp_path: Path) -> str:
        pytest.importorskip("mlflow")
        (tmp_path / "store").mkdir()
        return f"sqlite:///{tmp_path / 'store/mlflow.db'}"

    def test_what_the_client_reads_back(self, store: str, tiny_manifest: Path, tmp_path: Path, capsys: Any) -> None:
        from mlflow.tracking import MlflowClient

        out, client = tmp_path / "first", MlflowClient(store)
        assert run(train_arguments(tiny_manifest, out, "--epochs", "2", "--mlflow", store)) == 0
        run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
        assert run(["train", "--resume", str(out), "--epochs", "3"]) == 0  # no address: nothing is told
        assert len(client.get_metric_history(run_id, "val_mean_dice")) == 2
        assert run(["train", "--resume", str(out), "--epochs", "4", "--mlflow", store]) == 0
        history = (out / "history.csv").read_text().splitlines()
        column = history[0].split(",").index("val_mean_dice")
        told = client.get_metric_history(run_id, "val_mean_dice")
        assert [(m.step, m.value) for m in told] == [
            (epoch, float(row.split(",")[column])) for epoch, row in enumerate(history[1:], 1)
        ]
        found = client.get_run(run_id)
        assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
        assert found.data.params["network_def.channels"] == "[4, 8]" and found.data.params["fold"] == "0"
        lineage = sha256_of(out / "manifest.json")
        assert found.data.tags["segpipe.manifest_sha256"] == lineage
        (dataset,) = found.inputs.dataset_inputs
        assert lineage.startswith(dataset.dataset.digest) and dataset.dataset.name == "tiny"
        assert {file.path for file in client.list_artifacts(run_id)} == {
            "config.json",
            "run.json",
            "learning_curves.png",
        }
        place = tmp_path / "store/artifacts" / run_id / "artifacts"
        assert json.loads((place / "run.json").read_text())["status"] == "finished"
        assert str(tmp_path) not in (place / "config.json").read_text()

        bundle = tmp_path / "bundle"
        capsys.readouterr()
        assert run(["export", str(out), str(bundle), "--mlflow", store]) == 0
        assert run_id in capsys.readouterr().err
        kept = {file.relative_to(bundle): file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
        copy = place / "bundle"
        assert {f.relative_to(copy): f.read_bytes() for f in copy.rglob("*") if f.is_file()} == kept
        assert client.get_run(run_id).data.tags["segpipe.bundle_sha256sums"] == sha256_of(bundle / "SHA256SUMS")

    def test_of_several_runs_each_is_one(self, store: str, tiny_manifest: Path, tmp_path: Path) -> None:
        from mlflow.tracking import MlflowClient

        out = tmp_path / "folds"
        arguments = train_arguments(tiny_manifest, out, "--epochs", "1", "--seeds", "2", "--mlflow", store)
        assert run(arguments) == 0
        client = MlflowClient(store)
        (experiment,) = [each for each in client.search_experiments() if each.name == "tiny"]
        runs = client.search_runs([experiment.experiment_id])
        assert {each.info.run_name for each in runs} == {"folds/seed0", "folds/seed1"}
        assert {each.data.params["seed"] for each in runs} == {"0", "1"}
        assert ADDRESS not in os.environ

    def test_a_server_that_goes_away_ends_no_training(
        self, store: str, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        def away(*_: object, **__: object) -> None:
            raise MlflowException("connection refused")

        out = tmp_path / "first"
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_metric", away)
            real = MlflowClient.log_batch
            patch.setattr(MlflowClient, "log_batch", lambda *a, **k: away() if k.get("metrics") else real(*a, **k))
            assert run(train_arguments(tiny_manifest, out, "--epochs", "2", "--mlflow", store)) == 0
        said = capsys.readouterr().err
        assert said.count("MLflow does not answer") == 1
        hint = said.partition("tell it again with: segpipe ")[2].partition("ADDRESS")[0].split()
        assert run([*hint, store]) == 0
        run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
        assert [m.step for m in MlflowClient(store).get_metric_history(run_id, "train_loss")] == [1, 2]

    def test_where_nothing_answers_nothing_is_trained_and_no_secret_is_shown(
        self, tiny_manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        address = "http://me:secret@127.0.0.1:9"
        assert run(train_arguments(tiny_manifest, tmp_path / "first", "--mlflow", address)) == 2
        said = capsys.readouterr().err
        assert "MLflow does not answer there" in said and "secret" not in said
        assert not (tmp_path / "first").exists()

    def test_nothing_is_told_to_anybody_else(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow.telemetry import utils

        monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False)
        monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        monkeypatch.delenv("DO_NOT_TRACK", raising=False)
        assert not utils.is_telemetry_disabled()
        with tracked(store):
            assert utils.is_telemetry_disabled()
