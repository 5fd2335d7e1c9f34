"""Every method of the project by name. Adding one is one line here; nothing is discovered.

A pipeline may also name a class by import path, `my_package.my_module:MyStage`, without an entry here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import cache
from inspect import isabstract
from typing import Final, TypeGuard

from stages.errors import UserError
from stages.stage import Stage

METHODS: Final[Mapping[str, str]] = {
    "source.model": "stages.source.model:SourceModel",
    "source.dataset": "stages.source.dataset:SourceDataset",
    "source.trajectories": "stages.source.trajectories:SourceTrajectories",
    "data.prepare": "stages.data.prepare:PrepareData",
    "data.mix": "stages.data.mix:MixData",
    "data.synthesize_private": "stages.data.synthesize_private:SynthesizePrivate",
    "proxy.train": "stages.proxy.train:ProxyTrain",
    "proxy.rank": "stages.proxy.rank:ProxyRank",
    "proxy.probe": "stages.proxy.probe:ProxyProbe",
    "proxy.sweep": "stages.proxy.sweep:ProxySweep",
    "proxy.step_law": "stages.proxy.step_law:ProxyStepLaw",
    "proxy.fit_law": "stages.proxy.fit_law:ProxyFitLaw",
    "proxy.corrupt": "stages.proxy.corrupt:ProxyCorrupt",
    "distill.cache": "stages.distill.cache:DistillCache",
    "distill.logits": "stages.distill.logits:DistillLogits",
    "distill.student": "stages.distill.student:DistillStudent",
    "distill.recursive": "stages.distill.recursive:DistillRecursive",
    "compress.fold": "stages.compress.fold:CompressFold",
    "compress.prune": "stages.compress.prune:CompressPrune",
    "compress.perp": "stages.compress.perp:CompressPerp",
    "transfer.score_heads": "stages.transfer.score_heads:ScoreHeads",
    "transfer.select_heads": "stages.transfer.select_heads:SelectHeads",
    "transfer.convert": "stages.transfer.convert:TransferConvert",
    "transfer.align": "stages.transfer.align:TransferAlign",
    "transfer.distill": "stages.transfer.distill:TransferDistill",
    "transfer.extend": "stages.transfer.extend:TransferExtend",
    "upcycle.branch": "stages.upcycle.branch:UpcycleBranch",
    "upcycle.sparse": "stages.upcycle.sparse:UpcycleSparse",
    "upcycle.drop": "stages.upcycle.drop:UpcycleDrop",
    "upcycle.btx": "stages.upcycle.btx:UpcycleBtx",
    "upcycle.bam": "stages.upcycle.bam:UpcycleBam",
    "upcycle.mix": "stages.upcycle.mix:UpcycleMix",
    "quantize.rtn": "stages.quantize.rtn:QuantizeRoundToNearest",
    "quantize.gptq": "stages.quantize.gptq:QuantizeGptq",
    "quantize.awq": "stages.quantize.awq:QuantizeAwq",
    "quantize.glowq": "stages.quantize.glowq:QuantizeGlowq",
    "quantize.glowq_s": "stages.quantize.glowq_s:QuantizeGlowqSelected",
    "quantize.mixed": "stages.quantize.mixed:QuantizeMixed",
    "quantize.compare": "stages.quantize.compare:QuantizeCompare",
    "quantize.export_adapter": "stages.quantize.export_adapter:QuantizeExportAdapter",
    "agent.index": "stages.agent.environment.index:AgentIndex",
    "agent.questions": "stages.agent.questions.stage:AgentQuestions",
    "agent.gym_questions": "stages.agent.questions.gym:AgentGymQuestions",
    "agent.collect": "stages.agent.trajectories.collect:AgentCollect",
    "agent.clean": "stages.agent.trajectories.clean:AgentClean",
    "agent.sft": "stages.agent.sft.stage:AgentSft",
    "agent.rl": "stages.agent.rl.stage:AgentLearn",
    "agent.evaluate": "stages.agent.evaluate.stage:AgentEvaluate",
    "agent.handbook": "stages.agent.handbook.stage:AgentHandbook",
    "agent.guide": "stages.agent.handbook.guide:AgentGuide",
    "agent.report_topics": "stages.agent.report.topics_stage:AgentReportTopics",
    "agent.report_expert": "stages.agent.report.expert_stage:AgentReportExpert",
    "agent.report_rl": "stages.agent.report.rl_stage:AgentReportLearn",
    "agent.report": "stages.agent.report.stage:AgentReport",
    "evaluate.perplexity": "stages.evaluate.perplexity:EvaluatePerplexity",
    "evaluate.distance": "stages.evaluate.distance_stage:EvaluateDistance",
    "evaluate.speed": "stages.evaluate.speed:EvaluateSpeed",
    "evaluate.tasks": "stages.evaluate.tasks:EvaluateTasks",
    "evaluate.long_context": "stages.evaluate.long_context:EvaluateLongContext",
}


@cache
def find(name: str) -> type[Stage]:
    """The stage class behind `name` (a method or `module:Class`). Raises UserError naming the nearest method."""
    target = METHODS.get(name, name if ":" in name else "")
    if not target:
        import difflib

        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown method {name!r}", fix=f"{hint}methods: {', '.join(METHODS)}")
    return _load(name, target)


def target(name: str) -> str:
    """`module:Class` of the method `name`."""
    return METHODS.get(name, name)


def _load(name: str, target: str) -> type[Stage]:
    module_name, _, class_name = target.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", target):
        raise UserError(f"{name!r} is not MODULE:CLASS", fix="for example my_package.my_module:MyStage")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name!r}: no module {error.name!r}",
            fix="the module must be importable from where regraft runs: install it, or set PYTHONPATH",
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{name!r}: importing {module_name} fails: {reason}", fix="mend the module") from error
    found = getattr(module, class_name, None)
    if not _is_stage(found):
        there = ", ".join(key for key, value in vars(module).items() if _is_stage(value) and not isabstract(value))
        fix = f"stages there: {there}" if there else "name a module that defines a subclass of stages.stage.Stage"
        raise UserError(f"{name!r}: {module_name} has no stage {class_name!r}", fix=fix)
    return found


def _is_stage(value: object) -> TypeGuard[type[Stage]]:
    return isinstance(value, type) and issubclass(value, Stage)
