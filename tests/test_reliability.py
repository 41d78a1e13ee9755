"""Training survives kills, full disks and numbers that are none; runs do not mix; the same seed gives the same bits."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kill_training
from engine_samples import interrupt_second_step, settings
from test_training_loop import ALONE, all_tensors, make_stage, make_trainer

from engine import bad_steps, training
from utils import checkpoints, files
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    """A fresh interpreter that runs code with the project and its tests importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- kills and interrupts ------------------------------------------------------------------------------------------

def test_killed_trainings_end_like_undisturbed_ones(tmp_path):
    findings = kill_training.torment(kills=3, workers=0, seed=1, folder=tmp_path)
    assert sum(findings.kills.values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_kills(tmp_path, workers):
    kill_training.torment(50 if workers == 0 else 10, workers, seed=workers, folder=tmp_path)


def test_a_kill_between_best_and_last_loses_neither(tmp_path):
    """best.pth is ahead of last.pth then: the resumed run knows its score, and a worse one does not replace it."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), checkpoint_minutes=0.0, max_steps=2)
    scores = iter([0.5, 0.9, 0.7, 0.6])
    trainer.stage.score = lambda statistics: {"mean_iou": next(scores)}
    save = trainer.state.save

    def killed(name):
        if name == "last.pth" and trainer.state.step == 2:
            raise KeyboardInterrupt
        save(name)

    trainer.state.save = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert checkpoints.load(tmp_path / "last.pth")["step"] == 1
    assert checkpoints.load(tmp_path / "best.pth")["step"] == 2
    again = make_trainer(tmp_path, make_stage("occlusion"), checkpoint_minutes=0.0, max_steps=3)
    again.stage.score = trainer.stage.score
    again.restore(tmp_path / "last.pth")
    assert again.state.best == 0.9
    again.run()
    assert checkpoints.load(tmp_path / "best.pth")["step"] == 2
    assert checkpoints.load(tmp_path / "last.pth")["best"] == 0.9


def test_a_damaged_best_checkpoint_does_not_stop_a_resume(tmp_path, capsys):
    make_trainer(tmp_path, make_stage("occlusion"), max_steps=1).run()
    data = (tmp_path / "best.pth").read_bytes()
    (tmp_path / "best.pth").write_bytes(data[:-1])
    again = make_trainer(tmp_path, make_stage("occlusion"), max_steps=2)
    again.restore(tmp_path / "last.pth")
    assert "the next checkpoint replaces it" in capsys.readouterr().err
    again.run()
    assert checkpoints.load(tmp_path / "best.pth")["step"] == 2


def test_an_interrupt_saves_before_it_evaluates_and_says_how_to_go_on(tmp_path, capsys):
    """A second Ctrl-C during the evaluation that follows the first costs its scores, nothing else."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=50)
    interrupt_second_step(trainer)
    trainer.validate = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert checkpoints.load(tmp_path / "last.pth")["step"] == trainer.state.step == 2
    said = capsys.readouterr().out
    assert said.index("stopping after this step") < said.index(f"continue with --resume {tmp_path / 'last.pth'}")


# ---- the disk ------------------------------------------------------------------------------------------------------

def train_on_a_full_disk(folder: Path, make_full) -> str:
    """Trains one step, fills the disk, trains on; returns the error. The checkpoint of step 1 must stay as it was."""
    make_trainer(folder, make_stage("occlusion"), max_steps=1).run()
    before = {name: (folder / name).read_bytes() for name in ("last.pth", "best.pth")}
    again = make_trainer(folder, make_stage("occlusion"), max_steps=3, log_folder=folder / "logs")
    again.restore(folder / "last.pth")
    with make_full(), pytest.raises(UserError) as caught:
        again.run()
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert checkpoints.load(folder / "last.pth")["step"] == 1
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    return str(caught.value)


class SmallFiles:
    """While it is open, no file of this process may become larger: as a full disk, without being root."""

    def __enter__(self):
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, self.limit[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_disk_that_refuses_ends_with_one_line_and_the_last_checkpoint(tmp_path):
    message = train_on_a_full_disk(tmp_path, SmallFiles)
    assert "cannot write" in message and f"the last good state is {tmp_path / 'last.pth'}" in message


def test_a_full_disk_while_a_file_is_written(tmp_path):
    with SmallFiles(), pytest.raises(UserError, match="cannot write .*a.pth: File too large"):
        checkpoints.save(tmp_path / "a.pth", {"weight": torch.zeros(10 ** 5)})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_really_full_disk(tmp_path):
    """The same on a tmpfs of 1 MB; needs the right to mount one."""
    import contextlib

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")

    @contextlib.contextmanager
    def fill():
        with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        yield
        (disk / "filler").unlink()

    try:
        assert "No space left on device" in train_on_a_full_disk(disk / "run", fill)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- numbers that are none -----------------------------------------------------------------------------------------

def poison(trainer, steps, what: str) -> None:
    """Makes the loss, only its gradient, or the batch (and with it running means) not finite in some steps."""
    losses = trainer.stage.losses

    def broken(batch, rng, autocast, step):
        if step in steps:
            batch = {**batch, "image": batch["image"].float() * float("nan")} if what == "batch" else batch
        values, context = losses(batch, rng, autocast, step)
        if step in steps and what == "loss":
            values["dice"] = values["dice"] * float("inf")
        if step in steps and what == "gradient":
            weight = trainer.stage.networks["occlusion"].conv.weight
            values["dice"] = values["dice"] + (weight.sum() - weight.sum().detach()).abs().sqrt()  # slope 1 / 0 at 0
        return values, context

    trainer.stage.losses = broken


@pytest.mark.parametrize("what", ["loss", "gradient", "batch"])
def test_a_bad_step_stops_and_saves_its_batch(tmp_path, what):
    trainer = make_trainer(tmp_path, make_stage("occlusion"), checkpoint_minutes=0.0, max_steps=5)
    poison(trainer, {2}, what)
    with pytest.raises(UserError, match=r"at step 2 .*--skip-bad-steps.*the last good state is") as caught:
        trainer.run()
    path = tmp_path / "bad_batches" / "step_2.pth"
    assert str(path) in str(caught.value)
    saved = checkpoints.load(path)
    assert saved["step"] == 2 and saved["cause"] in str(caught.value)
    assert saved["batches"][0]["image"].shape == (2, 3, 256, 256) and len(saved["batches"][0]["name"]) == 2
    assert checkpoints.load(tmp_path / "last.pth")["step"] == 2


@pytest.mark.parametrize("what", ["loss", "gradient", "batch"])
def test_skipped_steps_are_counted_and_leave_no_trace(tmp_path, what, capsys):
    """Weights, averages, optimiser and running means end finite, also over a resume; the count is kept."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=4, skip_bad_steps=True)
    poison(trainer, {1, 3}, what)
    trainer.run()
    assert trainer.state.skipped == 2 and "2 steps were skipped" in capsys.readouterr().out
    assert all(torch.isfinite(value).all() for value in all_tensors(trainer).values() if value.is_floating_point())
    assert sorted(path.name for path in (tmp_path / "bad_batches").iterdir()) == ["step_1.pth", "step_3.pth"]
    again = make_trainer(tmp_path, make_stage("occlusion"), max_steps=6, skip_bad_steps=True)
    again.restore(tmp_path / "last.pth")
    poison(again, {4}, what)
    again.run()
    assert again.state.skipped == 3 and again.state.step == 6


def test_a_skipped_step_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=2, skip_bad_steps=True)
    poison(trainer, {0, 1}, "batch")
    before = {name: value.clone() for name, value in all_tensors(trainer).items()}
    trainer.run()
    after = all_tensors(trainer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_bad_step_yet_unseen_is_never_saved(tmp_path, stopped):
    """Between two looks at the losses, as on a GPU: at a checkpoint, and at a Ctrl-C before the next look."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), checkpoint_minutes=1e9 if stopped else 0.0, max_steps=9)
    trainer.look_every = 100
    poison(trainer, {1}, "gradient")
    if stopped:
        make_trainer(tmp_path, make_stage("occlusion"), max_steps=1).run()
        interrupt_second_step(trainer)
    with pytest.raises(UserError, match=r"step 2: .* of the networks is not finite; .*the last good state is"):
        trainer.run()
    assert {checkpoints.load(tmp_path / name)["step"] for name in ("last.pth", "best.pth")} == {1}


def test_skipping_ends_when_nothing_is_good(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_steps, "MOST_SKIPPED", 3)
    monkeypatch.setattr(bad_steps, "MOST_BAD_BATCHES", 2)
    trainer = make_trainer(tmp_path, make_stage("occlusion"), skip_bad_steps=True)
    poison(trainer, range(100), "loss")
    with pytest.raises(UserError, match="3 steps in a row were skipped"):
        trainer.run()
    assert len(list((tmp_path / "bad_batches").iterdir())) == 2


# ---- exactness -----------------------------------------------------------------------------------------------------

def test_loader_workers_do_not_matter(tmp_path):
    """The same seed gives the same losses, weights and scores with 0 and 2 workers."""
    results = []
    for workers in (0, 2):
        trainer = make_trainer(tmp_path / str(workers), make_stage("occlusion"), workers=workers, max_steps=6)
        losses = []
        log = trainer._log
        trainer._log = lambda step, values: (losses.append(dict(values)), log(step, values))
        trainer.run()
        results.append((losses, trainer.state.scores, all_tensors(trainer)))
    for losses, scores, tensors in results[1:]:
        assert losses == results[0][0] and scores == results[0][1]
        assert all(torch.equal(value, results[0][2][name]) for name, value in tensors.items())


def test_validation_does_not_disturb_training(tmp_path):
    """A checkpoint after every step or only at the end: the same bits."""
    often = make_trainer(tmp_path / "often", make_stage("encoder"), checkpoint_minutes=0.0, max_steps=3)
    seldom = make_trainer(tmp_path / "seldom", make_stage("encoder"), max_steps=3)
    states = []
    for trainer in (often, seldom):
        torch.manual_seed(5)
        trainer.run()
        states.append((all_tensors(trainer), torch.get_rng_state()))
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


def test_evaluation_does_not_depend_on_workers(tmp_path):
    """The same scores and the same pictures, with and without processes that load."""
    from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion, small_definition

    from engine.evaluation import EvaluationOptions, Evaluator
    from models.completion import FaceCompletion
    from models.morphable import MorphableModel

    torch.manual_seed(0)
    completion = FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()), SmallOcclusion(),
                                iterations=1).eval()
    results = []
    for workers in (0, 2):
        options = EvaluationOptions(tmp_path / str(workers), workers=workers, log_type="none")
        found = Evaluator(SmallFaces(3), completion, options, None).run()
        pictures = {path.name: path.read_bytes() for path in (tmp_path / str(workers)).iterdir()}
        results.append((found.names, found.ratios, found.scores, found.landmark_errors, pictures))
    assert results[0] == results[1] and len(results[0][4]) == 3


# ---- runs beside each other ----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from utils import files
with files.held(sys.argv[1], "another run", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_in_one_folder_do_not_mix(tmp_path):
    """The second is refused before it writes anything; a killed one holds nothing, and its debris is cleared."""
    first = run_python(HOLD, tmp_path)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by another run .process {first.pid}.*--save-dir"):
        with training.own_folder(tmp_path, ALONE):
            raise AssertionError("both hold the folder")
    first.kill()
    first.communicate()
    (tmp_path / ".last.pth.abc.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / ".notes.tmp").write_bytes(b"of somebody else")
    with training.own_folder(tmp_path, ALONE):
        assert sorted(path.name for path in tmp_path.iterdir()) == [files.LOCK_FILE, ".notes.tmp"]
    assert [path.name for path in tmp_path.iterdir()] == [".notes.tmp"]


def test_train_refuses_a_folder_in_use_before_it_reads_data(tmp_path, monkeypatch):
    from engine import build

    monkeypatch.setattr(build, "build_training_data", lambda settings: pytest.fail("data was read"))
    first = run_python(HOLD, tmp_path)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another run"):
            training.train(settings(save_dir=str(tmp_path), ngpu=0))
        assert [path.name for path in tmp_path.iterdir()] == [files.LOCK_FILE]
    finally:
        first.kill()
        first.communicate()
