"""DARTS written out in float64 on the textbook's supernet, for methods that change the step of the weights.

A test subclasses `TextbookSearch` with the formula of its method, and compares it step by step with a search job.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends.batched import plain_tensors
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting
from tests.engine.test_search_step import search_config
from tests.reference import textbook
from tests.reference.transfer import copy_tensors

SPACE = "dil_conv_3x3+skip_connect+none"


def job_of(**options: object) -> SearchJob:
    """A search job in float64 on 40 images of 8×8 pixels a part: 5 steps an epoch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 8, 8, 3), dtype=torch.uint8, generator=generator)
    part = ImageSet(images, torch.arange(80) % 4)
    spec = DataSpec("noise", 4, 8, 3, (0.5,) * 3, (0.25,) * 3, tuple("abcd"))
    small = {"kernels": "pytorch", "space": SPACE, "alpha_learning_rate": 0.05, "epochs": 4, "nodes": 1}
    torch.manual_seed(0)
    job = SearchJob(search_config(**small | options), Setting(torch.device("cpu"), Dataset(spec, part, part), {}, {}))
    job.supernet.double()
    job.supernet.register_forward_pre_hook(lambda supernet, inputs: (inputs[0].double(), *inputs[1:]))
    return job


class TextbookSearch:
    """First-order DARTS: a step of Adam on the alphas, then one of clipped SGD on the weights."""

    def __init__(self, job: SearchJob) -> None:
        """Takes over the weights and alphas of the job."""
        config = self.config = job.config
        self.job, self.epoch = job, 0
        self.net = textbook.Supernet(
            job.space.operations, channels=config.channels, cells=config.cells, num_classes=4, num_nodes=config.nodes
        ).double()
        self.change_edges()
        copy_tensors(self.net.parameters(), plain_tensors(job.supernet).values())
        self.alphas = [alpha.detach().clone().requires_grad_() for alpha in job.alphas]
        decay = config.alpha_weight_decay
        self.adam = torch.optim.Adam(self.alphas, config.alpha_learning_rate, betas=(0.5, 0.999), weight_decay=decay)
        self.weights = list(self.net.parameters())
        self.sgd = torch.optim.SGD(self.weights, config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)

    def change_edges(self) -> None:
        """Put other modules in the place of the mixed operations."""

    def edges(self) -> list[nn.ModuleList]:
        """The edges of each cell."""
        return [cell.edges for cell in self.net.cells]

    def mixing(self) -> list[Tensor]:
        """The mixing weights (normal, reduction), differentiable in the alphas."""
        return [textbook.softmax_over_operations(alpha) for alpha in self.alphas]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0].double(), *self.mixing()), batch[1])

    def weight_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        """The gradients of the weights, before they are clipped; None for weights that must not move."""
        return list(torch.autograd.grad(self.loss(batch), self.weights))

    def alpha_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(batch), self.alphas))

    def step(self, epoch: int, step: int) -> None:
        self.epoch, position = epoch, epoch * self.job.steps_per_epoch + step
        for alpha, gradient in zip(self.alphas, self.alpha_gradients(self.job.validation[position]), strict=True):
            alpha.grad = gradient
        self.adam.step()
        for group in self.sgd.param_groups:
            group["lr"] = self.job.learning_rate(epoch)
        for weight, gradient in zip(self.weights, self.weight_gradients(self.job.train[position]), strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.weights, self.config.gradient_clip)
        self.sgd.step()


def compare_ten_steps(job: SearchJob, textbook: TextbookSearch, relative: float = 1e-6) -> None:
    """Two epochs of five steps: the alphas after each step, and the weights after the last one."""
    assert job.steps_per_epoch == 5
    for epoch in range(2):
        for step in range(5):
            job.step(epoch, step)
            textbook.step(epoch, step)
            for mine, expected in zip(job.alphas, textbook.alphas, strict=True):
                torch.testing.assert_close(mine, expected, rtol=relative, atol=1e-2 * relative)
    for mine, expected in zip(plain_tensors(job.supernet).values(), textbook.weights, strict=True):
        torch.testing.assert_close(mine, expected, rtol=relative, atol=1e-2 * relative, check_stride=False)


class UnrolledTextbook(TextbookSearch):
    """Second-order DARTS: the alphas' gradient looks through one step of SGD (DARTS paper, equations 7 and 8)."""

    def step(self, epoch: int, step: int) -> None:
        self.train_batch = self.job.train[epoch * self.job.steps_per_epoch + step]
        super().step(epoch, step)

    def alpha_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        start = [weight.detach().clone() for weight in self.weights]
        rate, decay = self.job.learning_rate(self.epoch), self.config.weight_decay

        def move_to(weights: list[Tensor]) -> None:
            for weight, value in zip(self.weights, weights, strict=True):
                weight.data.copy_(value)

        def at(weights: list[Tensor]) -> list[Tensor]:
            move_to(weights)
            return list(torch.autograd.grad(self.loss(self.train_batch), self.alphas))

        gradients = torch.autograd.grad(self.loss(self.train_batch), self.weights)
        buffers = [self.sgd.state[weight].get("momentum_buffer") for weight in self.weights]
        velocities = [torch.zeros_like(w) if b is None else b for w, b in zip(start, buffers, strict=True)]
        moves = [0.9 * v + g + decay * w for v, g, w in zip(velocities, gradients, start, strict=True)]
        move_to([w - rate * move for w, move in zip(start, moves, strict=True)])
        found = torch.autograd.grad(self.loss(batch), [*self.alphas, *self.weights])
        direct, direction = found[: len(self.alphas)], found[len(self.alphas) :]
        eps = 0.01 / torch.sqrt(sum((d**2).sum() for d in direction))
        plus = at([w + eps * d for w, d in zip(start, direction, strict=True)])
        minus = at([w - eps * d for w, d in zip(start, direction, strict=True)])
        move_to(start)
        return [g - rate * (p - m) / (2 * eps) for g, p, m in zip(direct, plus, minus, strict=True)]
