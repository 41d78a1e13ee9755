"""What a step of the inpainter's training costs beside its bare parts, the bytes of gradients it shares, and memory.

    python benchmarks/training.py [--batch 2] [--repeats 2] [--ngpu 0] [--precision fp32]

The networks at their real size on built-in faces. "Bare" is the inpainter's forward, backward and optimiser step, and
with the discriminator its three passes and the gradient penalty, on tensors of the same sizes. With --ngpu 1 on a GPU,
in time on the clock.
"""
from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402

from completion import shortest  # noqa: E402

TARGET = 0.90


def make_trainer(folder: str, options: argparse.Namespace):
    """A trainer of the inpainter as args.txt describes it, with the adversarial losses from the first step on."""
    from datasets.synthetic import SyntheticFaces
    from engine import build
    from engine.distributed import World
    from engine.training import Trainer, TrainingOptions
    from utils import config

    os.chdir(ROOT)
    settings = config.parse(["--config", "args.txt", "--stage", "inpainter", "--ngpu", options.ngpu, "--loss-options",
                             '{"gan_start": 0}'], "benchmark")
    faces = SyntheticFaces("train", options.batch)
    stage = build.build_stage(settings, faces)
    training = TrainingOptions(Path(folder), batch_size=options.batch, ema=0, bar=False, precision=options.precision)
    trainer = Trainer(stage, faces, faces, training, World(0, 1, build.choose_device(settings)))
    trainer._set_modes()
    items = [faces[index] for index in range(options.batch)]
    return trainer, torch.utils.data.default_collate(items)


def bare_step(trainer, adversarial: bool) -> None:
    """The trained networks' own work of one step."""
    from engine import losses

    batch, networks, device = trainer.options.batch_size, trainer.stage, trainer.world.device
    trainer.optimisers["main"].zero_grad(set_to_none=True)
    with trainer._autocast():
        albedo, visible = torch.rand(batch, 3, 192, 256, device=device), torch.ones(batch, 1, 192, 256, device=device)
        result = networks.networks["inpainter"](albedo, visible)
    loss = result.albedo.float().square().mean() + result.confidence.float().square().mean()
    if adversarial:
        critic, picture = networks.critics["discriminator"], torch.rand(batch, 3, 256, 256, device=device)
        critic.requires_grad_(False)
        completed = picture * result.albedo.float().mean()
        with trainer._autocast():
            loss = loss + losses.hinge_generator_loss(critic(completed))
        critic.requires_grad_(True)
        trainer.optimisers["critic"].zero_grad(set_to_none=True)
        with trainer._autocast():
            of_critic = losses.hinge_discriminator_loss(critic(picture), critic(completed.detach()))
        (of_critic + losses.gradient_penalty(critic, picture, completed.detach())).backward()
        trainer.optimisers["critic"].step()
    loss.backward()
    trainer.optimisers["main"].step()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ngpu", default="0", help="1: on the GPU")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = make_trainer(folder, options)
        trainer.look_every = 1 << 30  # the display is not timed
        whole, alone, without = shortest(lambda: trainer._train_step([batch]), lambda: bare_step(trainer, True),
                                         lambda: bare_step(trainer, False), repeats=options.repeats,
                                         device=trainer.world.device)
        print(f"step of {options.batch} images: {whole:.0f} ms, bare networks {alone:.0f} ms: {alone / whole:.0%} "
              f"(target at least {TARGET:.0%})")
        print(f"the discriminator's share of the bare step: {1 - without / alone:.0%}")
        frozen = [parameter for module in trainer.stage.frozen.values() for parameter in module.parameters()]
        print(f"frozen parameters with gradients: {sum(parameter.grad is not None for parameter in frozen)}")
        for name, modules in (("inpainter", trainer.stage.networks), ("discriminator", trainer.stage.critics)):
            count = sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
            print(f"gradients of the {name} shared in a step: {4 * count / 2**20:.1f} MiB")
    print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
