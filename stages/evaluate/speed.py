"""`evaluate.speed`: how fast a model reads and writes, and what it holds, against a baseline in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Model, Report, write_report
from stages.evaluate.matching import require_context
from stages.evaluate.precision import ComputeType
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.evaluate.timing import Footprint, Sample

FIGURE = "speed.svg"
NAMES = ("model", "baseline")
UNTIMED_TURNS = 2
"""Turns of both models at each length before those that count: one to count bytes, one to warm up."""


class SpeedParams(Parameters):
    """What is timed, and how often."""

    context_lengths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 512, 2048)
    """Tokens of the prompt, one measurement each."""
    decode_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens to decode after the prompt and its first token."""
    repetitions: Annotated[int, Field(ge=1)] = 3
    """Timed turns of each model at each length, after one that warms up."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Prompts read and continued at once."""
    dtype: ComputeType = "auto"
    """Type both models compute in."""
    trust_remote_code: bool = False
    """Run the code that comes in the models' directories, for an architecture that `transformers` lacks."""

    def smoke(self) -> Self:
        """Two short prompts, once."""
        return self.replaced(context_lengths=(16, 64), decode_tokens=4, repetitions=1)


class EvaluateSpeed(Stage):
    """Time prefill and greedy decoding of a model and a baseline, in turns, over context lengths.

    Every ratio is the model's figure over the baseline's, in the same turn, so that a machine that slows down slows
    both. `prefill_ratio` and `decode_ratio` compare tokens a second and `first_token_ratio` promptness: better above 1.
    `cache_bytes_ratio` and `peak_bytes_ratio` compare bytes: better below 1. Metrics are medians at the longest
    context; the report has both models at all lengths, with minimum and maximum. Prompts are random tokens.
    """

    Params = SpeedParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "baseline": Input(Model)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = (
        *("prefill_seconds", "first_token_seconds", "decode_tokens_per_second", "cache_bytes", "peak_bytes"),
        *("prefill_ratio", "first_token_ratio", "decode_ratio", "cache_bytes_ratio", "peak_bytes_ratio"),
    )
    isolated = True
    params: SpeedParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The longest prompt and what is decoded after it fit both contexts."""
        needed = max(self.params.context_lengths) + self.params.decode_tokens
        for name in NAMES:
            require_context(inputs[name], needed, "context_lengths + decode_tokens", name)

    def run(self, context: Context) -> None:
        """Load both models, measure each length, report."""
        from stages.evaluate.figures import draw_speed
        from stages.evaluate.loading import computed_in, load_for_evaluation

        trusted = self.params.trust_remote_code
        sources = [context.model(name) for name in NAMES]
        models = [  # as a user has them: dense weights of quantised linears are not kept
            load_for_evaluation(source, self.params.dtype, trust_remote_code=trusted, hold=False) for source in sources
        ]
        lengths = sorted(set(self.params.context_lengths))
        turned = _turns(context, sum(lengths) * (UNTIMED_TURNS + self.params.repetitions))
        rows = [
            self._measure(
                models, _prompts(models, self.params.batch_size, length, context.seed), partial(turned, length)
            )
            for length in lengths
        ]
        context.metrics(**_metrics(rows[-1]))
        out = context.output("report")
        draw_speed(out / FIGURE, rows)
        told = {"device": _device(models[0]), "computed_in": computed_in(self.params.dtype), "figures": [FIGURE]}
        details = {**self.params.identity(), "lengths": rows, **told}
        write_report(out, "Speed", context.results, details)

    def _measure(self, models: Sequence[PreTrainedModel], ids_BT: Tensor, turned: Callable[[], None]) -> dict[str, Any]:
        from stages.evaluate.timing import alternate, footprint

        footprints = [footprint(model, ids_BT) for model in models]
        turned()
        alternate(models, ids_BT, min(2, self.params.decode_tokens), 1, turned)
        samples = alternate(models, ids_BT, self.params.decode_tokens, self.params.repetitions, turned)
        rows = {name: _row(*found) for name, *found in zip(NAMES, samples, footprints, strict=True)}
        return {"context_length": ids_BT.shape[1], **rows, "ratios": _ratios(samples, footprints)}


def _turns(context: Context, total: int) -> Callable[[int], None]:
    """What tells that both models have read a prompt of so many tokens."""
    read: list[int] = []

    def turned(length: int) -> None:
        read.append(length)
        context.progress(sum(read), total, "tokens of prompts")

    return turned


def _prompts(models: Sequence[PreTrainedModel], batch_size: int, length: int, seed: int) -> Tensor:
    """Token ids [B, T] that both models know, on their device."""
    import torch

    vocab_size = min(model.get_input_embeddings().num_embeddings for model in models)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, length), generator=generator).to(models[0].device)


def _row(samples: Sequence[Sample], footprint: Footprint) -> dict[str, Any]:
    from stages.evaluate.timing import spread

    return {
        "prefill_seconds": spread([sample.prefill for sample in samples]),
        "first_token_seconds": spread([sample.first_token for sample in samples]),
        "decode_tokens_per_second": spread([sample.decode_rate for sample in samples]),
        "cache_bytes": footprint.cache,
        "peak_bytes": footprint.peak,
    }


def _ratios(samples: Sequence[Sequence[Sample]], footprints: Sequence[Footprint]) -> dict[str, Any]:
    from stages.evaluate.timing import spread

    turns, (ours, theirs) = list(zip(*samples, strict=True)), footprints
    return {
        "prefill_ratio": spread([base.prefill / model.prefill for model, base in turns]),
        "first_token_ratio": spread([base.first_token / model.first_token for model, base in turns]),
        "decode_ratio": spread([model.decode_rate / base.decode_rate for model, base in turns]),
        "cache_bytes_ratio": ours.cache / theirs.cache,
        "peak_bytes_ratio": ours.peak / theirs.peak,
    }


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one length: the model's and the ratios, medians; the baseline's stay in the report."""
    figures = {**row["model"], **row["ratios"]}
    return {name: value["median"] if isinstance(value, dict) else value for name, value in figures.items()}


def _device(model: PreTrainedModel) -> str:
    import torch

    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"CPU, {torch.get_num_threads()} threads"
