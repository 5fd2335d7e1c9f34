"""`agent.rl`: a policy learns from its own rollouts, with a reward for every turn (IGPO, arXiv 2510.14967)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from stages.agent.rl.settings import LearningParameters, PolicyParameters
from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_given_tokens, require_one_vocabulary, require_room
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED

if TYPE_CHECKING:
    from stages.agent.environment.base import Environment


class AgentLearn(Stage):
    """Improve an agent by reinforcement learning in the environment of its questions.

    In every step the policy answers a few questions, each several times. A turn earns the information gain it brings:
    how much likelier the true answer becomes to the policy itself; the last turn earns the outcome. Rewards are
    compared within the rollouts of a question, and a clipped policy gradient with a KL to the reference (the model as
    it was given, without the input `reference`) makes the better turns likelier. `credit: grpo` is GRPO in the same
    code. With `heldout` the report tells the distance to the parent.
    """

    Params = LearningParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "index": Input(Dataset, schema="text", optional=True),
        "questions": Input(Dataset, schema="messages"),
        "reference": Input(Model, optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "model": Output(Model),
        "rollouts": Output(Dataset, schema="trajectories"),
        "report": Output(Report),
    }
    distributed = True
    isolated = True
    metrics = (
        "reward",
        "success",
        "answered",
        "malformed",
        "turns",
        "sampled_tokens",
        "first_reward",
        "first_success",
        "rollouts_per_second",
        *(name for name in TRAINED if name not in ("loss", "tokens_per_second")),
    )
    paper = "2510.14967"
    asked: ClassVar[str] = "questions"
    """The input that holds what the policy is asked."""
    params: PolicyParameters

    def environment(self, context: Context) -> Callable[[], Environment]:
        """What opens the environment, on every worker."""
        from stages.agent.environment.opening import open_environment

        return partial(open_environment, context.dataset(self.asked), context.inputs.get("index"))

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """One tokenizer everywhere, a window that the model reads, and what the questions' environment needs."""
        from stages.agent.environment.opening import check_index

        check_index(inputs)
        model, reference = inputs["model"], inputs.get("reference")
        require_room(model, self.params.window)
        if reference is not None:
            require_one_vocabulary(model, reference, ("model", "reference"))
        require_given_tokens(model, inputs, ("heldout",))

    def run(self, context: Context) -> None:
        """Learn, save the policy and all rollouts, measure and report."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.rl.beside import writer_beside
        from stages.agent.rl.curves import curves_of
        from stages.agent.rl.experience import Diary
        from stages.agent.rl.recipe import AgentLearning
        from stages.training.launch import run_training

        recipe = AgentLearning(
            model=context.model("model"),
            reference=context.inputs.get("reference") or context.model("model"),
            environment=self.environment(context),
            heldout=context.inputs.get("heldout"),
            params=self.params,
            seed=context.seed,
            scratch=context.scratch,
            out=context.output("model"),
        )
        with writer_beside(recipe, context) as recipe.writer:
            result = run_training(recipe, self.params.training(), context)
        figures = {name: value for name, value in result.figures.items() if name != recipe.loss_name}  # always around 0
        context.metrics(**figures, **result.cost)
        trajectories, curves = [], []
        for found in Diary(context.scratch / "rollouts").all(self.params.num_sets):
            trajectories += [row for one in found for row in one.rollout.rows]
            curves.append(curves_of(found, self.params))
        card = context.dataset(self.asked).card
        write_trajectories(context.output("rollouts"), trajectories, licence=card.licence, source=card.source)
        details = {**result.details(self.params, context.seed), "curves": curves}
        write_report(context.output("report"), "Reinforcement learning", figures, details)
